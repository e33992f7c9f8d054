"""What operations on key material share: reading it, and handing plaintext to the caller or to the recipient alone.

Core: an authorized call and the tools in; members of the answer out. With a recipient the plaintext member is absent,
and there is no path on which both could be there.
"""

from __future__ import annotations

from typing import Any, TypeVar

from alcove.kms import blob, recipient
from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError

T = TypeVar("T")


def arn(tools: Tools, call: Call) -> str:
    """The ARN of the call's key."""
    return tools.realm.key_arn(call.the_key.key_id)


def material(tools: Tools, call: Call) -> bytes:
    """The current material of the call's key."""
    key = call.the_key
    return _there(tools.store.material(key, key.material_id))


def private_key(tools: Tools, call: Call) -> Any:
    """The private key of the call's key, which is a pair."""
    key = call.the_key
    return _there(tools.store.private_key(key, key.material_id))


def _there(found: T | None) -> T:
    if found is None:
        raise KmsError("KMSInternalException", because="the key has no material")
    return found


def seal(tools: Tools, call: Call, plaintext: bytes) -> bytes:
    """A blob under the call's key and encryption context."""
    key = call.the_key
    header = blob.Header(key.key_id, key.material_id, tools.random(blob.NONCE_BYTES))
    return blob.seal(plaintext, material(tools, call), header, call.params.get("EncryptionContext", {}))


def deliver(tools: Tools, call: Call, plaintext: bytes, member: str = "Plaintext") -> dict[str, Any]:
    """The plaintext in its member, or nothing but the envelope for the recipient."""
    if call.recipient is None:
        return {member: plaintext}
    fresh = tools.random(recipient.CONTENT_KEY_BYTES + recipient.IV_BYTES)
    content_key, iv = fresh[: recipient.CONTENT_KEY_BYTES], fresh[recipient.CONTENT_KEY_BYTES :]
    envelope = recipient.seal(plaintext, call.recipient.public_key, content_key=content_key, iv=iv)
    return {"CiphertextForRecipient": envelope}
