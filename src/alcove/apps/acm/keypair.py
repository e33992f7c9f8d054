"""A key with its public half, and the numbers that PKCS#11 wants to know of it."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from alcove.apps.acm.cryptoki import Ckk
from alcove.apps.acm.mechanisms import MAX_RSA, MIN_RSA
from alcove.errors import InputError

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
# CKA_EC_PARAMS: the DER of the curve's OID (SEC 2 §A.2)
CURVES: Final[dict[str, bytes]] = {
    "secp224r1": bytes.fromhex("06052b81040021"),
    "secp256r1": bytes.fromhex("06082a8648ce3d030107"),
    "secp384r1": bytes.fromhex("06052b81040022"),
    "secp521r1": bytes.fromhex("06052b81040023"),
}


class KeyPair:
    """A private key of a kind that is served.

    Args:
        private: RSA of 1024 to 8192 bits, or EC over a NIST curve of 224 to 521 bits.

    Raises:
        InputError: It is another.
    """

    def __init__(self, private: object) -> None:
        if isinstance(private, rsa.RSAPrivateKey):
            if not MIN_RSA <= private.key_size <= MAX_RSA:
                raise InputError(f"an RSA key of {private.key_size} bits", hint=f"use {MIN_RSA} to {MAX_RSA} bits")
        elif not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name not in CURVES:
            raise InputError(
                "the key is of a kind that is not served", hint="use RSA, or EC over P-256, P-384 or P-521"
            )
        self.private: PrivateKey = private
        self.public: PublicKey = private.public_key()
        self.type = Ckk.RSA if isinstance(private, rsa.RSAPrivateKey) else Ckk.EC
        self.bytes = (private.key_size + 7) // 8

    @classmethod
    def from_pem(cls, pem: bytes) -> KeyPair:
        """The key in a PEM text.

        Raises:
            InputError: There is none, it is encrypted, or of a kind that is not served.
        """
        try:
            return cls(load_pem_private_key(pem, None))
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise InputError("this is no private key in PEM") from None

    @property
    def signature_length(self) -> int:
        """Bytes of a signature: the modulus, or r and s."""
        return self.bytes if self.type is Ckk.RSA else 2 * self.bytes
