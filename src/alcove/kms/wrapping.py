"""Key material on its way in: wrapping keys, import tokens, unwrapping (kms.md §15).

Core: bytes in; bytes out, or a KmsError.

An import token is the wrapping key itself, with what it is bound to, sealed under a key that only the service has. So
nothing is stored for an import that never comes, and every process of a store knows every token. Before it is sealed::

    u64 end of validity, milliseconds | u8 n | n bytes binding | PKCS#8 of the RSA key, DER
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from alcove.kms.errors import KmsError, unsupported
from alcove.kms.material import private_key

VALIDITY: Final = 24 * 3600.0  # seconds
NONCE_BYTES: Final = 12
_HEAD = struct.Struct(">QB")  # end length-of-binding
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "SHA_1": hashes.SHA1(),  # noqa: S303 - AWS's algorithm; OAEP does not rest on collision resistance
    "SHA_256": hashes.SHA256(),
}
_OAEP: Final = "RSAES_OAEP_"
_KEY_WRAP: Final = "RSA_AES_KEY_WRAP_"


def check_wrapping(algorithm: str, spec: str, key_spec: str) -> None:
    """Refuses what cannot carry material of a key spec.

    Raises:
        KmsError: UnsupportedOperationException.
    """
    if not algorithm.startswith((_OAEP, _KEY_WRAP)) or not spec.startswith("RSA_"):
        raise unsupported(f"{algorithm} with {spec} is not served")
    if algorithm.startswith(_OAEP) and (
        key_spec.startswith(("RSA_", "ML_")) or (spec == "RSA_2048" and key_spec == "ECC_NIST_P521")
    ):
        raise unsupported(f"{algorithm} with {spec} cannot carry material of key spec {key_spec}")


def seal_token(wrapping_key: bytes, binding: str, ends: float, secret: bytes, nonce: bytes) -> bytes:
    """The import token of a wrapping key (PKCS#8, DER)."""
    name = binding.encode()
    return nonce + AESGCM(secret).encrypt(nonce, _HEAD.pack(int(ends * 1000), len(name)) + name + wrapping_key, None)


def open_token(token: bytes, now: float, secret: bytes) -> tuple[str, rsa.RSAPrivateKey]:
    """What a token is bound to, and its wrapping key.

    Raises:
        KmsError: InvalidImportTokenException, ExpiredImportTokenException.
    """
    try:
        opened = AESGCM(secret).decrypt(token[:NONCE_BYTES], token[NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        raise KmsError("InvalidImportTokenException", "The import token is not valid.") from None
    ends, length = _HEAD.unpack_from(opened)
    if ends / 1000 < now:
        raise KmsError("ExpiredImportTokenException", "The import token has expired.")
    start = _HEAD.size + length
    return opened[_HEAD.size : start].decode(), private_key(opened[start:])


def unwrap(key: rsa.RSAPrivateKey, algorithm: str, wrapped: bytes) -> bytes:
    """The material; whatever is wrong, it is the same error.

    Raises:
        KmsError: InvalidCiphertextException.
    """
    try:
        if algorithm.startswith(_OAEP):
            return key.decrypt(wrapped, _oaep(algorithm.removeprefix(_OAEP)))
        size = key.key_size // 8
        ephemeral = key.decrypt(wrapped[:size], _oaep(algorithm.removeprefix(_KEY_WRAP)))
        return keywrap.aes_key_unwrap_with_padding(ephemeral, wrapped[size:])
    except (ValueError, keywrap.InvalidUnwrap):
        raise KmsError("InvalidCiphertextException", because="the wrapped key material does not open") from None


def _oaep(name: str) -> padding.OAEP:
    digest = _HASHES[name]
    return padding.OAEP(mgf=padding.MGF1(digest), algorithm=digest, label=None)
