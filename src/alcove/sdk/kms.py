"""KMS for code that can prove itself: every call carries an attestation document (sdk.md §2–§4).

    kms = AttestedKms("us-east-1", Credentials("AKIA…", "…"), ca_file="/app/ca.pem")
    secret = kms.decrypt(ciphertext, key_id="arn:aws:kms:us-east-1:…:key/…")

How a call goes:
    1 an RSA-2048 key, made once a client, that never leaves this memory
    2 a fresh document over its public half, made for this call
    3 a request, signed with the document's time, over TLS that ends here
    4 the answer: KMS's error, or an envelope that only our key opens
    5 the key that KMS names must be the one that was asked for

Steps 3 and 5 are what keeps the parent out: the envelope alone proves nothing about who made it (sdk.md §9).
A program that uses boto3 needs none of this: see `alcove.sdk.boto3`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from alcove.errors import ProtocolError, UsageError
from alcove.sdk import nsm
from alcove.sdk.attested import Attester, RecipientKey
from alcove.sdk.boto3 import attested
from alcove.sdk.clock import document_time
from alcove.sdk.endpoint import PROXY_PORT, Credentials, Endpoint, default_host
from alcove.sdk.errors import KmsError
from alcove.sdk.http import Answer
from alcove.sdk.recipient import ENVELOPE, KEY_ENCRYPTION, KEY_SPECS, AttestedCall, is_alias
from alcove.sdk.tls import Transport, VsockTransport

__all__ = [
    "UNSAFE_ANY_KEY",
    "AnyKey",
    "AttestedKms",
    "Attester",
    "Credentials",
    "DataKey",
    "KeyPair",
    "attested",
    "default_host",
]

MAX_RANDOM: Final = 1024  # kms.md §9


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key: use `plaintext`, store `ciphertext` and `key_id`."""

    plaintext: bytes = field(repr=False)
    ciphertext: bytes
    key_id: str


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A data key pair: use `private_key` (PKCS #8 DER), store `ciphertext` and `key_id`, publish `public_key`."""

    private_key: bytes = field(repr=False)
    public_key: bytes
    ciphertext: bytes
    key_id: str


class AnyKey:
    """Says aloud that whatever key opens a ciphertext is fine: see `UNSAFE_ANY_KEY`."""


UNSAFE_ANY_KEY: Final = AnyKey()
"""The parent stores ciphertexts, and may hand over one that another key of ours opens (sdk.md §9)."""


class AttestedKms:
    """A client of one KMS; threads may share it.

    Args:
        region: Such as "us-east-1".
        credentials: An access key, or a function that gives the current one before each call.
        endpoint_host: The server's name, with `:port` when that is not 443; AWS's name for the region by default.
            The certificate must carry the name.
        proxy_port: Where the parent's vsock-proxy listens.
        ca_file: PEM certificates that the server is trusted by; pin yours. None trusts the image's default store.
        transport: Another way to the server than the proxy.
        attester: Another maker of documents than the process's module.
        keys: ARNs or ids of the keys that answers may name; empty allows every one.

    Every call raises KmsError with KMS's own type and message, NsmError, EnvelopeError, ProtocolError when the server
    is not what it should be, and MachineError when it cannot be reached.
    """

    def __init__(
        self,
        region: str,
        credentials: Credentials | Callable[[], Credentials],
        endpoint_host: str | None = None,
        *,
        proxy_port: int = PROXY_PORT,
        ca_file: str | None = None,
        transport: Transport | None = None,
        attester: Attester | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        transport = VsockTransport(proxy_port) if transport is None else transport
        self._endpoint = Endpoint(region, credentials, endpoint_host, ca_file=ca_file, transport=transport)
        self._key = RecipientKey(nsm.default() if attester is None else attester)
        self._keys = tuple(keys)

    def decrypt(
        self,
        ciphertext: bytes,
        *,
        key_id: str | AnyKey,
        encryption_context: Mapping[str, str] | None = None,
        grant_tokens: Sequence[str] = (),
        encryption_algorithm: str | None = None,
    ) -> bytes:
        """The plaintext of a KMS ciphertext.

        Args:
            ciphertext: What Encrypt or GenerateDataKey gave.
            key_id: The ARN or the id of the key that must have made it, or `UNSAFE_ANY_KEY`. An alias cannot be
                compared with the answer, and is refused.
            encryption_context: The same pairs as at encryption.
            grant_tokens: Tokens of fresh grants.
            encryption_algorithm: As at encryption; needed for asymmetric keys.
        """
        members = {"CiphertextBlob": _b64(ciphertext)} | _optional(encryption_context, grant_tokens)
        if not isinstance(key_id, AnyKey):
            members["KeyId"] = _comparable(key_id)
        if encryption_algorithm is not None:
            members["EncryptionAlgorithm"] = encryption_algorithm
        return self.call("Decrypt", members)[0]

    def generate_data_key(
        self,
        key_id: str,
        *,
        key_spec: str = "AES_256",
        encryption_context: Mapping[str, str] | None = None,
        grant_tokens: Sequence[str] = (),
    ) -> DataKey:
        """A fresh data key, in clear and under the key `key_id` (ARN or id).

        Args:
            key_id: The ARN or the id of the key that wraps it.
            key_spec: "AES_256" or "AES_128".
            encryption_context: Pairs that Decrypt must then be given too.
            grant_tokens: Tokens of fresh grants.
        """
        if key_spec not in KEY_SPECS:
            raise UsageError(f"no key spec {key_spec}", hint=f"one of {', '.join(KEY_SPECS)}")
        members = {"KeyId": _comparable(key_id), "KeySpec": key_spec} | _optional(encryption_context, grant_tokens)
        plaintext, answer = self.call("GenerateDataKey", members, KEY_SPECS[key_spec])
        return DataKey(plaintext, _bytes(answer, "CiphertextBlob"), answer["KeyId"])

    def generate_data_key_pair(
        self, key_id: str, key_pair_spec: str, *, encryption_context: Mapping[str, str] | None = None
    ) -> KeyPair:
        """A fresh key pair, such as "ECC_NIST_P256"; its private half in clear and under the key `key_id`."""
        members = {"KeyId": _comparable(key_id), "KeyPairSpec": key_pair_spec} | _optional(encryption_context, ())
        plaintext, answer = self.call("GenerateDataKeyPair", members)
        ciphertext = _bytes(answer, "PrivateKeyCiphertextBlob")
        return KeyPair(plaintext, _bytes(answer, "PublicKey"), ciphertext, answer["KeyId"])

    def derive_shared_secret(self, key_id: str, public_key: bytes) -> bytes:
        """The ECDH secret of KMS's key `key_id` and a peer's public key (DER SubjectPublicKeyInfo)."""
        members = {"KeyId": _comparable(key_id), "KeyAgreementAlgorithm": "ECDH", "PublicKey": _b64(public_key)}
        return self.call("DeriveSharedSecret", members)[0]

    def generate_random(self, size: int) -> bytes:
        """`size` random bytes of KMS's, 1 to 1024."""
        if not 1 <= size <= MAX_RANDOM:
            raise UsageError(f"KMS gives 1 to {MAX_RANDOM} random bytes, not {size}")
        return self.call("GenerateRandom", {"NumberOfBytes": size}, size)[0]

    def call(
        self, operation: str, members: Mapping[str, Any], size: int | None = None
    ) -> tuple[bytes, Mapping[str, Any]]:
        """Any operation that can carry `Recipient`, with its members as in KMS's JSON.

        Args:
            operation: Such as "Decrypt".
            members: The request without `Recipient`. A KeyId may be an alias here: see `sdk.recipient`.
            size: How many bytes the plaintext must have, when that is known.

        Returns:
            The plaintext, and the members of the answer.
        """
        call = AttestedCall(operation, members.get("KeyId"), size, self._keys)
        document = self._key.document()
        recipient = {"AttestationDocument": _b64(document), "KeyEncryptionAlgorithm": KEY_ENCRYPTION}
        body = json.dumps({**members, "Recipient": recipient}).encode()
        answer = _read(self._endpoint.post(f"TrentService.{operation}", body, document_time(document)))
        call.check_answer(answer)
        return call.check_plaintext(self._key.open(_bytes(answer, ENVELOPE))), answer


def _read(answer: Answer) -> dict[str, Any]:
    """The members of a good answer; KMS's error otherwise (kms.md §1.3)."""
    try:
        members = json.loads(answer.body) if answer.body else {}
    except (ValueError, RecursionError):
        members = None
    if answer.status != 200:
        found = members if isinstance(members, dict) else {}
        kind = str(found.get("__type") or f"HTTP{answer.status}").rpartition("#")[2].partition(":")[0]
        raise KmsError(kind, str(found.get("message") or found.get("Message") or ""), status=answer.status)
    if not isinstance(members, dict):
        raise ProtocolError("KMS's answer is not a JSON object")
    return members


def _comparable(key_id: str) -> str:
    if not key_id or is_alias(key_id):
        raise UsageError(
            "an alias cannot be compared with the key that KMS names in its answer", hint="pass the key's ARN"
        )
    return key_id


def _optional(context: Mapping[str, str] | None, tokens: Sequence[str]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    if context:
        members["EncryptionContext"] = dict(context)
    if tokens:
        members["GrantTokens"] = list(tokens)
    return members


def _bytes(answer: Mapping[str, Any], name: str) -> bytes:
    value = answer.get(name)
    if isinstance(value, str) and value:
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error:
            pass
    raise ProtocolError(f"KMS's answer has no {name}")


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
