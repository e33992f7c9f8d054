"""Key material: making it, and reading what the store keeps (kms.md §12).

Core: a spec in, bytes out; bytes in, keys out. What is random comes from the library's own generator.

Symmetric and HMAC keys are their raw bytes; key pairs are PKCS#8 in DER, public halves SubjectPublicKeyInfo in DER.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, mlkem, rsa

from alcove.kms.errors import KmsError, unsupported
from alcove.kms.specs import KeySpec

_DER = serialization.Encoding.DER
_MAKERS: Final[dict[str, Callable[[], Any]]] = {
    "RSA_2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA_3072": lambda: rsa.generate_private_key(65537, 3072),
    "RSA_4096": lambda: rsa.generate_private_key(65537, 4096),
    "ECC_NIST_P256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ECC_NIST_P384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ECC_NIST_P521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ECC_SECG_P256K1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "ECC_NIST_EDWARDS25519": ed25519.Ed25519PrivateKey.generate,
    "ML_DSA_44": mldsa.MLDSA44PrivateKey.generate,
    "ML_DSA_65": mldsa.MLDSA65PrivateKey.generate,
    "ML_DSA_87": mldsa.MLDSA87PrivateKey.generate,
    "ML_KEM_768": mlkem.MLKEM768PrivateKey.generate,
    "ML_KEM_1024": mlkem.MLKEM1024PrivateKey.generate,
}
_SECRET_BYTES: Final = {"SYMMETRIC_DEFAULT": 32, "HMAC_224": 28, "HMAC_256": 32, "HMAC_384": 48, "HMAC_512": 64}
_IMPORT_BYTES: Final = {  # §12, §15: the lengths that imported secrets may have
    "SYMMETRIC_DEFAULT": (32, 32),
    "HMAC_224": (28, 64),
    "HMAC_256": (32, 64),
    "HMAC_384": (48, 128),
    "HMAC_512": (64, 128),
}
_CURVES: Final = {
    "secp256r1": "ECC_NIST_P256",
    "secp384r1": "ECC_NIST_P384",
    "secp521r1": "ECC_NIST_P521",
    "secp256k1": "ECC_SECG_P256K1",
}
_KINDS: Final[dict[type, str]] = {
    ed25519.Ed25519PrivateKey: "ECC_NIST_EDWARDS25519",
    mldsa.MLDSA44PrivateKey: "ML_DSA_44",
    mldsa.MLDSA65PrivateKey: "ML_DSA_65",
    mldsa.MLDSA87PrivateKey: "ML_DSA_87",
    mlkem.MLKEM768PrivateKey: "ML_KEM_768",
    mlkem.MLKEM1024PrivateKey: "ML_KEM_1024",
}


class KeyPending(Exception):  # noqa: N818 - not an error: the call goes on with the key
    """A call needs a key that is slow to make; make it elsewhere and make the call again with it.

    Args:
        spec: Name of the key's spec.
    """

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self.spec = spec


def new_material(spec: KeySpec, random: Callable[[int], bytes], made: bytes | None) -> bytes:
    """New material.

    Args:
        spec: Of which spec.
        random: For secrets that are nothing but bytes.
        made: A key pair of that spec that was made for this call.

    Raises:
        KeyPending: It is slow to make, and there is none.
        KmsError: UnsupportedOperationException.
    """
    if not spec.pair:
        return random(_SECRET_BYTES[spec.name])
    if spec.slow and made is None:
        raise KeyPending(spec.name)
    return make_pair(spec.name) if made is None else made


def make_pair(spec: str) -> bytes:
    """A new key pair, PKCS#8 in DER.

    Raises:
        KmsError: UnsupportedOperationException, when the library here cannot.
    """
    try:
        key = _MAKERS[spec]()
    except UnsupportedAlgorithm as error:
        raise unsupported(f"keys of spec {spec} cannot be made here") from error
    return bytes(key.private_bytes(_DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def check_material(spec: str, material: bytes) -> None:
    """Refuses imported material that is none of a key spec.

    Raises:
        KmsError: InvalidCiphertextException, as for everything else that is wrong with an import (§15).
    """
    wrong = KmsError("InvalidCiphertextException", because=f"the key material is none of {spec}")
    if spec in _IMPORT_BYTES:
        least, most = _IMPORT_BYTES[spec]
        if not least <= len(material) <= most:
            raise wrong
        return
    try:
        key = serialization.load_der_private_key(material, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise wrong from None
    if _spec_name(key) != spec:
        raise wrong


def _spec_name(key: Any) -> str:
    """The name of the spec that a private key is of, or an empty one."""
    if isinstance(key, rsa.RSAPrivateKey):
        return f"RSA_{key.key_size}"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return _CURVES.get(key.curve.name, "")
    return next((name for kind, name in _KINDS.items() if isinstance(key, kind)), "")


def private_key(material: bytes) -> Any:
    """The private key of stored material; it was authenticated when it was unwrapped, so RSA is not checked again."""
    return serialization.load_der_private_key(material, None, unsafe_skip_rsa_key_validation=True)


def public_half(material: bytes) -> bytes:
    """The public half of stored material: SubjectPublicKeyInfo, DER."""
    return public_bytes(private_key(material))


def public_bytes(key: Any) -> bytes:
    """The public half of a private key: SubjectPublicKeyInfo, DER."""
    return bytes(key.public_key().public_bytes(_DER, serialization.PublicFormat.SubjectPublicKeyInfo))
