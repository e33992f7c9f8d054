"""Signs PCR0 of an image and checks such a signature (eif.md §3.3).

Core: bytes in, the accepted certificate out; time is a parameter.

A signature is accepted when

1. the section parses, and its certificate is PEM with a key on P-256, P-384 or P-521
2. the algorithm is that curve's
3. the key signs the Sig_structure
4. the payload names register 0 and the PCR0 that was measured (nitro-cli does not look, §8 trap 6)
5. the time lies within the certificate's validity

There is no chain: the signer's identity is PCR8, the digest of the certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final, Self, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from alcove.errors import InputError, MachineError, UsageError
from alcove.image.signature import PcrInfo, Sign1, SignatureEntry, pack_section, parse_section

Sign = Callable[[bytes, hashes.HashAlgorithm], bytes]
_ALGORITHMS: Final[dict[str, tuple[int, hashes.HashAlgorithm]]] = {  # eif.md §3.1; RFC 9053 §2.1
    "secp256r1": (-7, hashes.SHA256()),
    "secp384r1": (-35, hashes.SHA384()),
    "secp521r1": (-36, hashes.SHA512()),
}


class SignatureRefusedError(InputError):
    """A signature that is not accepted; E59."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the image's signature was not accepted: {reason}",
            hint="sign the image again with a certificate that is valid now",
            code="E59",
        )


def load_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM file.

    Raises:
        SignatureRefusedError: When there is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise SignatureRefusedError("the signing certificate is not a certificate in PEM") from None


def certificate_der(pem: bytes) -> bytes:
    """The DER of the first certificate of a PEM file: what PCR8 measures.

    Raises:
        SignatureRefusedError: When there is none.
    """
    return load_certificate(pem).public_bytes(serialization.Encoding.DER)


def verify_section(section: bytes, pcr0: bytes, at: datetime) -> SignatureEntry:
    """The entry of a signature section, accepted by the recipe above.

    Args:
        section: Data of the signature section.
        pcr0: The PCR0 that was measured, 48 bytes.
        at: The time of the check, with time zone.

    Raises:
        ImageFormatError: When the section is malformed.
        SignatureRefusedError: E59 when the signature is not accepted.
    """
    entry = parse_section(section)  # 1
    certificate = load_certificate(entry.certificate)
    check_signature(entry, certificate)  # 2, 3
    check_payload(entry, pcr0)  # 4
    check_validity(certificate, at)  # 5
    return entry


def check_validity(certificate: x509.Certificate, at: datetime) -> None:
    """Step 5: the time lies within the certificate's validity."""
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= at <= last:
        span = f"{first:%Y-%m-%dT%H:%M:%SZ} to {last:%Y-%m-%dT%H:%M:%SZ}"
        raise SignatureRefusedError(f"the signing certificate is not valid at this time, but from {span}")


def check_signature(entry: SignatureEntry, certificate: x509.Certificate) -> None:
    """Steps 2 and 3: the certificate's key made the signature."""
    sign1 = Sign1.parse(entry.sign1)
    key = certificate_key(certificate)
    algorithm, digest = _ALGORITHMS[key.curve.name]
    if sign1.algorithm != algorithm:
        raise SignatureRefusedError(f"algorithm {sign1.algorithm} does not belong to the key's curve, {key.curve.name}")
    width = _width(key)
    if len(sign1.signature) != 2 * width:
        raise SignatureRefusedError(f"{len(sign1.signature)} bytes of signature instead of {2 * width}")
    r, s = (int.from_bytes(part) for part in (sign1.signature[:width], sign1.signature[width:]))
    try:
        key.verify(encode_dss_signature(r, s), sign1.to_be_signed, ec.ECDSA(digest))
    except InvalidSignature:
        raise SignatureRefusedError("the certificate's key did not make it") from None


def check_payload(entry: SignatureEntry, pcr0: bytes) -> None:
    """Step 4: the signature is over the PCR0 of this image."""
    payload = PcrInfo.parse(Sign1.parse(entry.sign1).payload)
    if payload.index != 0:
        raise SignatureRefusedError(f"it is over PCR{payload.index} instead of PCR0")
    if payload.value != pcr0:
        told = f"{payload.value.hex()[:12]}…"
        raise SignatureRefusedError(f"it is over the PCR0 of another image, {told}; this one's is {pcr0.hex()[:12]}…")


class Signer:
    """Signs PCR0 in the name of a certificate.

    Args:
        certificate: PEM file; its first certificate is the signer's.
        public_key: Public half of the key that `sign` uses.
        sign: Gives an ECDSA signature in DER over a digest of the bytes it gets.

    Raises:
        UsageError: E60 when certificate and key do not go together, or are not on P-256, P-384 or P-521.
    """

    def __init__(self, certificate: bytes, public_key: object, sign: Sign) -> None:
        try:
            self._certificate = load_certificate(certificate)
            self._key = certificate_key(self._certificate)
        except SignatureRefusedError as error:
            raise _unsigned(
                error.reason, "give the signer's certificate, a PEM file with a key on such a curve"
            ) from None
        if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name not in _ALGORITHMS:
            raise _unsigned("the private key is not on P-256, P-384 or P-521", "make a key on one of them")
        if public_key != self._key:
            raise _unsigned("the private key is not the signing certificate's", "give the key that it was made for")
        self._pem = certificate
        self._sign = sign
        self.certificate_der = self._certificate.public_bytes(serialization.Encoding.DER)

    @classmethod
    def from_pem(cls, certificate: bytes, private_key: bytes) -> Self:
        """A signer with the certificate's private key, PEM without a password.

        Raises:
            UsageError: E60, as the class, or when the key cannot be read.
        """
        try:
            key = serialization.load_pem_private_key(private_key, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            why = "the private key is not a key in PEM without a password"
            raise _unsigned(why, "give a PEM file, a pkcs11: URI or the ARN of a KMS key") from None

        def sign(data: bytes, digest: hashes.HashAlgorithm) -> bytes:
            return _sign_in_memory(cast("ec.EllipticCurvePrivateKey", key), data, digest)

        return cls(certificate, key.public_key(), sign)

    def sign(self, pcr0: bytes) -> bytes:
        """The data of the signature section for an image with this PCR0.

        Raises:
            MachineError: E60 when the signature that came back does not verify.
            AlcoveError: What the key's keeper says.
        """
        algorithm, digest = _ALGORITHMS[self._key.curve.name]
        unsigned = Sign1.unsigned(algorithm, PcrInfo(0, pcr0).pack())
        width = _width(self._key)
        der = self._sign(unsigned.to_be_signed, digest)
        try:
            r, s = decode_dss_signature(der)
            signed = replace(unsigned, signature=r.to_bytes(width) + s.to_bytes(width))
            entry = SignatureEntry(self._pem, signed.pack())
            check_signature(entry, self._certificate)
        except (ValueError, OverflowError, SignatureRefusedError):
            why = "the image could not be signed: the signature that came back does not verify"
            raise MachineError(why, code="E60", hint="is the key still the one that the certificate names?") from None
        return pack_section(entry)


def _sign_in_memory(key: ec.EllipticCurvePrivateKey, data: bytes, digest: hashes.HashAlgorithm) -> bytes:
    """Deterministic (RFC 6979), so that a signed image is reproducible as a whole; random under OpenSSL before 3.2."""
    try:
        return key.sign(data, ec.ECDSA(digest, deterministic_signing=True))
    except UnsupportedAlgorithm:
        return key.sign(data, ec.ECDSA(digest))


def _unsigned(why: str, hint: str) -> UsageError:
    return UsageError(f"the image could not be signed: {why}", hint=hint, code="E60")


def certificate_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The certificate's key.

    Raises:
        SignatureRefusedError: When it is not on P-256, P-384 or P-521.
    """
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):  # it is parsed only here
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _ALGORITHMS:
        raise SignatureRefusedError("the certificate's key is not on P-256, P-384 or P-521")
    return key


def _width(key: ec.EllipticCurvePublicKey) -> int:
    """Bytes of r and of s in a COSE signature (RFC 9053 §2.1)."""
    return (key.curve.key_size + 7) // 8
