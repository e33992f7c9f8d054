"""Signatures: algorithms, message types and their limits (kms.md §12, §21).

Core: a key, an algorithm and a message in; a signature out, or a KmsError.
"""

from __future__ import annotations

from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from alcove.kms import prehashed
from alcove.kms.errors import KmsError, validation

RAW: Final = "RAW"
DIGEST: Final = "DIGEST"
EXTERNAL_MU: Final = "EXTERNAL_MU"
MU_BYTES: Final = 64  # FIPS 204 §6.2
_ML_DSA: Final = "ML_DSA_SHAKE_256"
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "SHA_256": hashes.SHA256(),
    "SHA_384": hashes.SHA384(),
    "SHA_512": hashes.SHA512(),
}
_ED25519_PH: Final = "ED25519_PH_SHA_512"
_WHOLE: Final = frozenset({_ML_DSA, "ED25519_SHA_512"})  # these sign messages, not digests
_TYPES: Final = {_ML_DSA: (RAW, EXTERNAL_MU), "ED25519_SHA_512": (RAW,), _ED25519_PH: (DIGEST,)}  # others: both


def check_message(algorithm: str, message_type: str, message: bytes) -> None:
    """Refuses a message that does not fit algorithm and type.

    Raises:
        KmsError: ValidationException.
    """
    if message_type not in _TYPES.get(algorithm, (RAW, DIGEST)):
        raise validation(f"MessageType {message_type} is not compatible with algorithm {algorithm}.")
    if message_type == RAW:
        return
    size = MU_BYTES if message_type == EXTERNAL_MU else _hash(algorithm).digest_size
    if len(message) != size:
        raise validation(f"Digest is invalid length for algorithm {algorithm}.")


def sign(key: Any, algorithm: str, message: bytes, message_type: str) -> bytes:
    """A signature; PSS with a salt as long as the hash, ECDSA in DER."""
    if algorithm == _ED25519_PH:
        return prehashed.sign(key, message)
    if algorithm in _WHOLE:
        return bytes(key.sign_mu(message) if message_type == EXTERNAL_MU else key.sign(message))
    digest = _hash(algorithm)
    how = Prehashed(digest) if message_type == DIGEST else digest
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, _padding(algorithm, digest), how)
    return bytes(key.sign(message, ec.ECDSA(how)))


def verify(key: Any, algorithm: str, message: bytes, message_type: str, signature: bytes) -> None:
    """Accepts a signature.

    Raises:
        KmsError: KMSInvalidSignatureException, without a message.
    """
    try:
        _verify(key, algorithm, message, message_type, signature)
    except InvalidSignature:
        raise KmsError("KMSInvalidSignatureException") from None


def _verify(key: Any, algorithm: str, message: bytes, message_type: str, signature: bytes) -> None:
    if algorithm == _ED25519_PH:
        prehashed.verify(key, message, signature)
        return
    if algorithm in _WHOLE:
        (key.verify_mu if message_type == EXTERNAL_MU else key.verify)(signature, message)
        return
    digest = _hash(algorithm)
    how = Prehashed(digest) if message_type == DIGEST else digest
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, message, _padding(algorithm, digest), how)
    else:
        key.verify(signature, message, ec.ECDSA(how))


def _hash(algorithm: str) -> hashes.HashAlgorithm:
    return _HASHES[algorithm[-len("SHA_256") :]]


def _padding(algorithm: str, digest: hashes.HashAlgorithm) -> padding.AsymmetricPadding:
    if algorithm.startswith("RSASSA_PSS"):
        return padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)
    return padding.PKCS1v15()
