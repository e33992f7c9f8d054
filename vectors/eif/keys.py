"""Signers with fixed keys, and signatures that come out the same every time (RFC 6979).

The keys are public: they are small numbers, and sign nothing but vectors.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from vectors.eif.layout import pcr

AT = "2026-06-01T00:00:00Z"
VALID = (2026, 2036)
_CURVES: dict[
    int, tuple[ec.EllipticCurve, hashes.SHA256 | hashes.SHA384 | hashes.SHA512, int]
] = {  # COSE algorithm → curve, digest, width
    -7: (ec.SECP256R1(), hashes.SHA256(), 32),
    -35: (ec.SECP384R1(), hashes.SHA384(), 48),
    -36: (ec.SECP521R1(), hashes.SHA512(), 66),
}


@dataclass(frozen=True)
class Identity:
    """A key, fixed by its scalar, and its self-signed certificate."""

    algorithm: int = -35
    scalar: int = 3
    years: tuple[int, int] = VALID

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The private key."""
        return ec.derive_private_key(self.scalar, _CURVES[self.algorithm][0])

    @property
    def certificate(self) -> x509.Certificate:
        """Valid from the first day of one year to that of another."""
        return _certificate(self)

    @property
    def pem(self) -> bytes:
        """The certificate as a PEM file."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def pcr8(self) -> str:
        """The register that measures the certificate."""
        return pcr(self.certificate.public_bytes(serialization.Encoding.DER))

    def sign(self, data: bytes) -> bytes:
        """R ‖ s over the data."""
        _, digest, width = _CURVES[self.algorithm]
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(digest, deterministic_signing=True)))
        return r.to_bytes(width) + s.to_bytes(width)


@cache
def _certificate(who: Identity) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"vector {who.scalar}")])
    first, last = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in who.years)
    builder = x509.CertificateBuilder(name, name, who.key.public_key(), who.scalar, first, last)
    return builder.sign(who.key, _CURVES[who.algorithm][1], ecdsa_deterministic=True)


def head(major: int, argument: int) -> bytes:
    """The shortest head of a CBOR item."""
    for info, size in ((24, 1), (25, 2), (26, 4)):
        if argument < 24:
            return bytes([major << 5 | argument])
        if argument < 1 << 8 * size:
            return bytes([major << 5 | info]) + argument.to_bytes(size)
    raise ValueError(argument)


def text(value: str) -> bytes:
    """A CBOR text string."""
    return head(3, len(value)) + value.encode()


def octets(value: bytes) -> bytes:
    """A CBOR byte string."""
    return head(2, len(value)) + value


def numbers(value: bytes) -> bytes:
    """Bytes as the format has them: an array of integers."""
    return head(4, len(value)) + b"".join(head(0, byte) for byte in value)


def payload(register: bytes, index: int = 0) -> bytes:
    """What is signed: the number of the register, and its value."""
    return b"\xa2" + text("register_index") + head(0, index) + text("register_value") + numbers(register)


def sign1(who: Identity, content: bytes, algorithm: int | None = None) -> bytes:
    """A COSE_Sign1 over the content; the algorithm is the key's own unless another is claimed."""
    protected = b"\xa1\x01" + head(1, -1 - (who.algorithm if algorithm is None else algorithm))
    signed = b"\x84" + text("Signature1") + octets(protected) + octets(b"") + octets(content)
    return b"\x84" + octets(protected) + b"\xa0" + octets(content) + octets(who.sign(signed))


def entry(pem: bytes, signature: bytes) -> bytes:
    """One signer's entry."""
    return b"\xa2" + text("signing_certificate") + numbers(pem) + text("signature") + numbers(signature)


def section(who: Identity, register: str, pem: bytes = b"") -> bytes:
    """The data of a signature section, over a register given in hexadecimal."""
    return b"\x81" + entry(pem or who.pem, sign1(who, payload(bytes.fromhex(register))))
