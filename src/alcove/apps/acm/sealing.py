"""Keys that are born in the enclave, and kept outside as ciphertext (acm.md §9).

A key is sealed with AES-256-GCM under a fresh data key of KMS's, and the data key under a KMS key whose policy names
the image. Label, names and KMS key are the encryption context of the one and the additional data of the other: a
parent that hands over another key's ciphertext, or its own, gets nothing opened.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from alcove.apps.acm.keypair import KeyPair, PrivateKey
from alcove.errors import InputError, UsageError
from alcove.sdk.kms import AnyKey, DataKey

MAX_SEALED: Final = 16384  # characters; an RSA-4096 key takes some 3800
NONCE_BYTES: Final = 12
KEY_TYPES: Final = ("ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096")
_VERSION: Final = 1


class Kms(Protocol):
    """KMS with attestation; `AttestedKms` is one."""

    def decrypt(
        self, ciphertext: bytes, *, key_id: str | AnyKey, encryption_context: Mapping[str, str] | None = None
    ) -> bytes:
        """The plaintext."""

    def generate_data_key(self, key_id: str, *, encryption_context: Mapping[str, str] | None = None) -> DataKey:
        """A fresh data key."""


def make_key(kind: str) -> PrivateKey:
    """A fresh private key.

    Raises:
        UsageError: There is no such kind.
    """
    if kind not in KEY_TYPES:
        raise UsageError(f"no key type {kind}", hint=f"one of {', '.join(KEY_TYPES)}")
    family, _, size = kind.partition("-")
    if family == "rsa":
        return rsa.generate_private_key(65537, int(size))
    return ec.generate_private_key(ec.SECP256R1() if size == "p256" else ec.SECP384R1())


def binding(label: str, domains: Sequence[str], key_id: str) -> dict[str, str]:
    """The encryption context: what a ciphertext is for."""
    names = ",".join(sorted(name.lower() for name in domains))
    return {"alcove:label": label, "alcove:domain": names, "alcove:key-id": key_id}


def seal(private: PrivateKey, label: str, domains: Sequence[str], key_id: str, kms: Kms) -> str:
    """The key as text that only this image can open, for this label and these names."""
    context = binding(label, domains, key_id)
    data_key = kms.generate_data_key(key_id, encryption_context=context)
    nonce = secrets.token_bytes(NONCE_BYTES)
    der = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    sealed = AESGCM(data_key.plaintext).encrypt(nonce, der, _additional(context))
    fields = {"data_key": data_key.ciphertext, "nonce": nonce, "sealed": sealed}
    texts: dict[str, Any] = {name: base64.b64encode(value).decode() for name, value in fields.items()}
    return json.dumps({"version": _VERSION, "key_id": key_id, **texts}, separators=(",", ":"))


def unseal(text: str, label: str, domains: Sequence[str], key_id: str | None, kms: Kms) -> KeyPair:
    """The key in a sealed text.

    Args:
        text: What `seal` gave.
        label: The label that it must have been sealed for.
        domains: The names likewise.
        key_id: The KMS key that must have sealed it; None takes the text's own word, which is bound likewise.
        kms: Opens the data key.

    Raises:
        InputError: It is not such a text, or it was sealed for something else.
        KmsError: KMS does not open the data key: for another label, name or key, or the policy refuses.
    """
    fields = _parse(text)
    named = fields["key_id"]
    if key_id is not None and named != key_id:
        raise InputError(f"the key is sealed under {named:.200}, not under {key_id}")
    context = binding(label, domains, named)
    data_key = kms.decrypt(fields["data_key"], key_id=named, encryption_context=context)
    try:
        der = AESGCM(data_key).decrypt(fields["nonce"], fields["sealed"], _additional(context))
        return KeyPair(load_der_private_key(der, None))
    except (InvalidTag, ValueError, TypeError):
        raise InputError("the sealed key was changed, or sealed for something else") from None


def _parse(text: str) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(text) if len(text) <= MAX_SEALED else {}
        binary = {name: base64.b64decode(fields[name], validate=True) for name in ("data_key", "nonce", "sealed")}
        version, key_id = fields["version"], fields["key_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        version, key_id, binary = None, None, {}
    if version != _VERSION or not isinstance(key_id, str):
        raise InputError("this is no sealed key")
    return {"key_id": key_id, **binary}


def _additional(context: Mapping[str, str]) -> bytes:
    return json.dumps(context, sort_keys=True).encode()
