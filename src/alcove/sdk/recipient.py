"""Calls of KMS that carry `Recipient`: what they are, and what their answers must be (sdk.md §3).

Core: an operation with its parameters, then an answer's members in; whether the answer will do out.

    1 no plaintext member: KMS sends it when it does not honour Recipient, or somebody stripped the request
    2 the key that KMS names is the one that was asked for, and one of those that are allowed
    3 the plaintext has the size that was asked for

An alias cannot be compared with the key's ARN in the answer: there the account and the Region are, and the key itself
only with the allowed ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from alcove.errors import ProtocolError

ENVELOPE: Final = "CiphertextForRecipient"
KEY_ENCRYPTION: Final = "RSAES_OAEP_SHA_256"
PLAINTEXT_MEMBER: Final = {
    "Decrypt": "Plaintext",
    "GenerateDataKey": "Plaintext",
    "GenerateDataKeyPair": "PrivateKeyPlaintext",
    "DeriveSharedSecret": "SharedSecret",
    "GenerateRandom": "Plaintext",
}
KEY_SPECS: Final = {"AES_256": 32, "AES_128": 16}  # bytes of the data key


@dataclass(frozen=True, slots=True)
class AttestedCall:
    """One call that carries `Recipient`.

    Attributes:
        operation: One of `PLAINTEXT_MEMBER`.
        key_id: The key that was asked for: id, ARN or alias; None when none was.
        size: How many bytes the plaintext has; None when that is not known before.
        allowed: ARNs or ids of the keys that an answer may name; empty allows every one.
    """

    operation: str
    key_id: str | None = None
    size: int | None = None
    allowed: tuple[str, ...] = ()

    @property
    def member(self) -> str:
        """The member that the plaintext has in an answer without `Recipient`."""
        return PLAINTEXT_MEMBER[self.operation]

    def check_answer(self, answer: Mapping[str, Any]) -> None:
        """Steps 1 and 2, before the envelope is opened.

        Raises:
            ProtocolError: The answer will not do.
        """
        if any(answer.get(member) is not None for member in PLAINTEXT_MEMBER.values()):  # 1
            raise ProtocolError("KMS sent the plaintext in the open", hint="it does not honour Recipient")
        if not answer.get(ENVELOPE):
            raise ProtocolError(f"KMS's answer has no {ENVELOPE}", hint="it does not honour Recipient")
        if self.operation != "GenerateRandom":
            self._check_key(answer.get("KeyId"))

    def check_plaintext(self, plaintext: bytes) -> bytes:
        """Step 3; returns the plaintext.

        Raises:
            ProtocolError: It has another size.
        """
        if self.size is not None and len(plaintext) != self.size:
            raise ProtocolError(f"KMS gave {len(plaintext)} bytes where {self.size} were asked for")
        return plaintext

    def _check_key(self, named: object) -> None:
        if not isinstance(named, str) or ":key/" not in named:
            raise ProtocolError(f"KMS's answer names no key but {named!r:.200}")
        if self.key_id is not None and not fits(named, self.key_id):
            raise ProtocolError(f"KMS used the key {named:.200}, not {self.key_id}")
        if self.allowed and not any(fits(named, key) for key in self.allowed):
            raise ProtocolError(f"KMS used the key {named:.200}, which is not one of those that are allowed")


def attested_call(operation: str, parameters: Mapping[str, Any], allowed: Sequence[str] = ()) -> AttestedCall | None:
    """The call, when it is one that can carry `Recipient` and does not yet; None otherwise."""
    if operation not in PLAINTEXT_MEMBER or parameters.get("Recipient") is not None:
        return None
    key_id, size = parameters.get("KeyId"), None
    if operation in ("GenerateDataKey", "GenerateRandom"):
        size = KEY_SPECS.get(str(parameters.get("KeySpec")), parameters.get("NumberOfBytes"))
    return AttestedCall(
        operation,
        key_id if isinstance(key_id, str) else None,
        size if isinstance(size, int) else None,
        tuple(allowed),
    )


def is_alias(key_id: str) -> bool:
    """Whether a key identifier is an alias' name or ARN."""
    return key_id.startswith("alias/") or ":alias/" in key_id


def fits(named: str, asked: str) -> bool:
    """Whether the key's ARN that KMS named can be the key that was asked for."""
    if is_alias(asked):
        place, _, _ = asked.rpartition("alias/")
        return named.startswith(f"{place}key/") if place else True
    return named == asked or named.endswith(f":key/{asked}")
