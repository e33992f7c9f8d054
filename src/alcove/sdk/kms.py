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
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives.asymmetric import rsa

from alcove.errors import ProtocolError, UsageError
from alcove.sdk import sigv4
from alcove.sdk.clock import document_time
from alcove.sdk.cms import open_envelope, subject_public_key_info
from alcove.sdk.errors import KmsError
from alcove.sdk.http import Answer, encode_post
from alcove.sdk.nsm import Nsm
from alcove.sdk.tls import Transport, VsockTransport, exchange, make_context

PROXY_PORT: Final = 8000  # sdk.md §2
RSA_BITS: Final = 2048  # sdk.md §3
MAX_RANDOM: Final = 1024  # kms.md §9
KEY_SPECS: Final = {"AES_256": 32, "AES_128": 16}  # bytes of the data key
# sdk.md §2: the last label of a partition, by the region's prefix
_SUFFIXES: Final = {
    "cn-": "amazonaws.com.cn",
    "eusc-": "amazonaws.eu",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "eu-isoe-": "cloud.adc-e.uk",
    "us-isof-": "csp.hci.ic.gov",
}
_ENDPOINT = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; the session token comes with temporary ones."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key: use `plaintext`, store `ciphertext` and `key_id`."""

    plaintext: bytes = field(repr=False)
    ciphertext: bytes
    key_id: str


class AnyKey:
    """Says aloud that whatever key opens a ciphertext is fine: see `UNSAFE_ANY_KEY`."""


UNSAFE_ANY_KEY: Final = AnyKey()
"""The parent stores ciphertexts, and may hand over one that another key of ours opens (sdk.md §9)."""


class Attester(Protocol):
    """What makes attestation documents; `Nsm` does."""

    def attestation(self, *, public_key: bytes | None = None) -> bytes:
        """A fresh document."""


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
        attester: Another maker of documents than /dev/nsm.

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
    ) -> None:
        self._region = region
        self._credentials = credentials
        self._host = default_host(region) if endpoint_host is None else endpoint_host
        self._server_name = _server_name(self._host)
        self._context = make_context(ca_file)
        self._transport = VsockTransport(proxy_port) if transport is None else transport
        self._attester = Nsm() if attester is None else attester
        self._key: rsa.RSAPrivateKey | None = None
        self._key_lock = threading.Lock()

    def decrypt(
        self,
        ciphertext: bytes,
        *,
        key_id: str | AnyKey,
        encryption_context: Mapping[str, str] | None = None,
        grant_tokens: Sequence[str] = (),
    ) -> bytes:
        """The plaintext of a KMS ciphertext.

        Args:
            ciphertext: What Encrypt or GenerateDataKey gave.
            key_id: The ARN or the id of the key that must have made it, or `UNSAFE_ANY_KEY`. An alias cannot be
                compared with the answer, and is refused.
            encryption_context: The same pairs as at encryption.
            grant_tokens: Tokens of fresh grants.
        """
        members: dict[str, Any] = {"CiphertextBlob": _b64(ciphertext)}
        if not isinstance(key_id, AnyKey):
            members["KeyId"] = _comparable(key_id)
        answer = self._call("Decrypt", members | _optional(encryption_context, grant_tokens))
        if not isinstance(key_id, AnyKey):
            _check_key(answer, key_id)
        return self._unwrap(answer)

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
        members = {"KeyId": _comparable(key_id), "KeySpec": key_spec}
        answer = self._call("GenerateDataKey", members | _optional(encryption_context, grant_tokens))
        _check_key(answer, key_id)
        plaintext = _sized(self._unwrap(answer), KEY_SPECS[key_spec])
        return DataKey(plaintext, _bytes(answer, "CiphertextBlob"), answer["KeyId"])

    def generate_random(self, size: int) -> bytes:
        """`size` random bytes of KMS's, 1 to 1024."""
        if not 1 <= size <= MAX_RANDOM:
            raise UsageError(f"KMS gives 1 to {MAX_RANDOM} random bytes, not {size}")
        return _sized(self._unwrap(self._call("GenerateRandom", {"NumberOfBytes": size})), size)

    def _call(self, operation: str, members: dict[str, Any]) -> dict[str, Any]:
        document = self._attester.attestation(public_key=subject_public_key_info(self._recipient_key().public_key()))
        members["Recipient"] = {
            "AttestationDocument": _b64(document),
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
        }
        body = json.dumps(members).encode()
        request = self._signed(operation, body, document_time(document))
        return _read(exchange(self._transport, self._context, self._server_name, request))

    def _signed(self, operation: str, body: bytes, moment: float) -> bytes:
        credentials = self._credentials() if callable(self._credentials) else self._credentials
        headers = {
            "host": self._host,
            "content-type": "application/x-amz-json-1.1",
            "x-amz-date": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment)),
            "x-amz-target": f"TrentService.{operation}",
        }
        if credentials.session_token is not None:
            headers["x-amz-security-token"] = credentials.session_token
        headers["authorization"] = sigv4.authorization(
            headers,
            body,
            access_key_id=credentials.access_key_id,
            secret_access_key=credentials.secret_access_key,
            region=self._region,
            service="kms",
        )
        return encode_post(headers, body)

    def _recipient_key(self) -> rsa.RSAPrivateKey:
        with self._key_lock:
            if self._key is None:
                self._key = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
            return self._key

    def _unwrap(self, answer: Mapping[str, Any]) -> bytes:
        if answer.get("Plaintext") is not None:
            raise ProtocolError("KMS sent the plaintext in the open", hint="it does not honour Recipient")
        return open_envelope(_bytes(answer, "CiphertextForRecipient"), self._recipient_key())


def default_host(region: str) -> str:
    """AWS's name of KMS in a region (sdk.md §2)."""
    suffix = next((suffix for prefix, suffix in _SUFFIXES.items() if region.startswith(prefix)), "amazonaws.com")
    return f"kms.{region}.{suffix}"


def _server_name(host: str) -> str:
    match = _ENDPOINT.fullmatch(host)
    if match is None:
        raise UsageError(f"{host!r} is not a host name, with or without a port")
    return match["name"].strip("[]")


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
    if not key_id or key_id.startswith("alias/") or ":alias/" in key_id:
        raise UsageError(
            "an alias cannot be compared with the key that KMS names in its answer", hint="pass the key's ARN"
        )
    return key_id


def _check_key(answer: Mapping[str, Any], asked: str) -> None:
    named = answer.get("KeyId")
    fits = isinstance(named, str) and (named == asked or named.endswith(f":key/{asked}"))
    if not fits:
        raise ProtocolError(f"KMS used the key {named!r:.200}, not {asked}")


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


def _sized(value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise ProtocolError(f"KMS gave {len(value)} bytes where {size} were asked for")
    return value


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
