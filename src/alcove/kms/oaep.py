"""RSA encryption: OAEP with one hash for both places and no label (kms.md §12).

Core: a key, an algorithm and bytes in; bytes out, or a KmsError. A ciphertext is the bare RSA block.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from alcove.kms.errors import KmsError, validation

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "RSAES_OAEP_SHA_1": hashes.SHA1(),  # noqa: S303 - AWS's algorithm; OAEP does not rest on collision resistance
    "RSAES_OAEP_SHA_256": hashes.SHA256(),
}


def check_size(spec: str, algorithm: str, plaintext: bytes) -> None:
    """Refuses a plaintext that does not fit: modulus less two hashes and two bytes (RFC 8017 §7.1.1).

    Raises:
        KmsError: ValidationException, in the recorded words (§10.3).
    """
    most = int(spec.removeprefix("RSA_")) // 8 - 2 * _HASHES[algorithm].digest_size - 2
    if len(plaintext) > most:
        raise validation(f"Algorithm {algorithm} and key spec {spec} cannot encrypt data larger than {most} bytes.")


def encrypt(key: rsa.RSAPublicKey, algorithm: str, plaintext: bytes) -> bytes:
    """The RSA block."""
    return key.encrypt(plaintext, _padding(algorithm))


def decrypt(key: rsa.RSAPrivateKey, algorithm: str, ciphertext: bytes) -> bytes:
    """The plaintext.

    Raises:
        KmsError: InvalidCiphertextException, whatever is wrong.
    """
    try:
        return key.decrypt(ciphertext, _padding(algorithm))
    except ValueError:
        raise KmsError("InvalidCiphertextException", because="the RSA block does not open") from None


def _padding(algorithm: str) -> padding.OAEP:
    digest = _HASHES[algorithm]
    return padding.OAEP(mgf=padding.MGF1(digest), algorithm=digest, label=None)
