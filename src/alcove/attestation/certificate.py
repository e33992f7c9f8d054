"""One certificate of the chain, parsed strictly (attestation.md §4.1, §5.2 step 6).

Core: DER in, a checked certificate out.

Only the shape that the platform issues is a certificate here: X.509 version 3, ecdsa-with-SHA384 inside and outside, an
uncompressed P-384 key, a list of extensions without duplicates. Two parsers look at every certificate: ours, for all
that decides trust, and `cryptography`'s, for keys and signatures. What either of them refuses is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from alcove.codec import der
from alcove.codec.der import Node

MAX_CERTIFICATE: Final = 1024  # attestation.md §2: bytes of DER

_ECDSA_WITH_SHA384: Final = bytes.fromhex("300a06082a8648ce3d040303")
# SubjectPublicKeyInfo of id-ecPublicKey, secp384r1, up to the 04 of the uncompressed point
_P384_PREFIX: Final = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
_P384_SPKI_SIZE: Final = 120
_VERSION_3: Final = bytes.fromhex("a003020102")
_EXTENSIONS: Final = 0xA3
_BASIC_CONSTRAINTS: Final = bytes.fromhex("551d13")
_KEY_USAGE: Final = bytes.fromhex("551d0f")
_DIGITAL_SIGNATURE: Final = 0x80  # RFC 5280 §4.2.1.3, bit 0
_KEY_CERT_SIGN: Final = 0x04  # bit 5
_MAX_PATH_LENGTH: Final = 127  # one octet; more is absurd in a chain of at most ten


@dataclass(frozen=True, slots=True)
class BasicConstraints:
    """The basicConstraints extension; `path_length` is None when absent."""

    critical: bool
    is_authority: bool
    path_length: int | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A well-formed certificate. Nothing about it is trusted yet.

    `issuer` and `subject` are the encoded names, `key_usage` is the first octet of the bit string, and None stands for
    an absent extension. `unknown_critical` holds the dotted numbers of critical extensions that we do not interpret.
    """

    der: bytes
    serial: int
    issuer: bytes
    subject: bytes
    not_before: datetime
    not_after: datetime
    basic_constraints: BasicConstraints | None
    key_usage: int | None
    unknown_critical: tuple[str, ...]
    public_key: EllipticCurvePublicKey
    loaded: x509.Certificate

    @property
    def signs_certificates(self) -> bool:
        """Whether keyUsage has keyCertSign."""
        return bool((self.key_usage or 0) & _KEY_CERT_SIGN)

    @property
    def signs_data(self) -> bool:
        """Whether keyUsage has digitalSignature."""
        return bool((self.key_usage or 0) & _DIGITAL_SIGNATURE)

    @property
    def common_name(self) -> str:
        """The subject's common name, or the whole name when it has none; fit for a terminal."""
        names = self.loaded.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        name = str(names[0].value) if names else self.loaded.subject.rfc4514_string()
        return name if name.isprintable() else ascii(name)

    def is_signed_by(self, parent: Certificate) -> bool:
        """Whether `parent` is the issuer by name, and its key made the signature: one P-384 verification."""
        if self.issuer != parent.subject:
            return False
        try:
            self.loaded.verify_directly_issued_by(parent.loaded)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def parse_certificate(data: bytes) -> Certificate:
    """The certificate in `data`.

    Raises:
        ValueError: `data` is not exactly one certificate of the shape above; `DerError` where bytes are wrong.
    """
    outer = der.parse(data)
    tbs, algorithm, signature = _exactly(outer, 3, "certificate")
    if algorithm.raw != _ECDSA_WITH_SHA384:
        raise der.DerError("certificate: the signature algorithm is not ecdsa-with-SHA384", algorithm.offset)
    if signature.bit_string("signature")[0]:
        raise der.DerError("signature: unused bits", signature.offset)
    version, serial, inner, issuer, validity, subject, key, wrapper = _exactly(tbs, 8, "tbsCertificate")
    if version.raw != _VERSION_3:
        raise der.DerError("version: not 3", version.offset)
    if inner.raw != algorithm.raw:
        raise der.DerError("tbsCertificate: another signature algorithm inside than outside", inner.offset)
    if not key.raw.startswith(_P384_PREFIX) or len(key.raw) != _P384_SPKI_SIZE:
        raise der.DerError("subjectPublicKeyInfo: not an uncompressed P-384 key", key.offset)
    not_before, not_after = (node.time("validity") for node in _exactly(validity, 2, "validity"))
    constraints, usage, unknown = _extensions(wrapper)
    loaded, public_key = _load(data)
    return Certificate(
        der=data,
        serial=serial.integer("serialNumber"),
        issuer=issuer.expect(der.SEQUENCE, "issuer").raw,
        subject=subject.expect(der.SEQUENCE, "subject").raw,
        not_before=not_before,
        not_after=not_after,
        basic_constraints=constraints,
        key_usage=usage,
        unknown_critical=unknown,
        public_key=public_key,
        loaded=loaded,
    )


def _exactly(node: Node, count: int, name: str) -> list[Node]:
    children = node.children(der.SEQUENCE, name)
    if len(children) != count:
        raise der.DerError(f"{name}: {len(children)} fields where {count} must be", node.offset)
    return children


def _load(data: bytes) -> tuple[x509.Certificate, EllipticCurvePublicKey]:
    try:
        certificate = x509.load_der_x509_certificate(data)
        key = certificate.public_key()
        _ = certificate.subject, certificate.issuer
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise ValueError(f"certificate: {error}") from None
    if not isinstance(key, EllipticCurvePublicKey):
        raise ValueError("subjectPublicKeyInfo: not an elliptic-curve key")  # noqa: TRY004 - the input is wrong
    return certificate, key


def _extensions(wrapper: Node) -> tuple[BasicConstraints | None, int | None, tuple[str, ...]]:
    inner = wrapper.children(_EXTENSIONS, "extensions")
    if len(inner) != 1:
        raise der.DerError("extensions: not one list", wrapper.offset)
    constraints: BasicConstraints | None = None
    usage: int | None = None
    unknown: list[str] = []
    seen: set[bytes] = set()
    for node in inner[0].children(der.SEQUENCE, "extensions"):
        identifier, critical, value = _extension(node)
        if identifier in seen:
            raise der.DerError("extensions: the same extension twice", node.offset)
        seen.add(identifier)
        if identifier == _BASIC_CONSTRAINTS:
            constraints = _basic_constraints(value, critical=critical)
        elif identifier == _KEY_USAGE:
            usage = _key_usage(value)
        elif critical:
            unknown.append(identifier.hex())
    return constraints, usage, tuple(unknown)


def _extension(node: Node) -> tuple[bytes, bool, bytes]:
    fields = node.children(der.SEQUENCE, "extension")
    critical = False
    if len(fields) == 3:  # an explicit FALSE is no DER, and seen; attestation.md §6 accepts it
        critical = fields.pop(1).boolean("critical")
    if len(fields) != 2:
        raise der.DerError("extension: not two or three fields", node.offset)
    identifier = fields[0].expect(der.OBJECT_IDENTIFIER, "extnID").content
    if not identifier:
        raise der.DerError("extnID: empty", fields[0].offset)
    return identifier, critical, fields[1].expect(der.OCTET_STRING, "extnValue").content


def _basic_constraints(value: bytes, *, critical: bool) -> BasicConstraints:
    node = der.parse(value)
    fields = node.children(der.SEQUENCE, "basicConstraints")
    authority = bool(fields) and fields[0].tag == der.BOOLEAN and fields.pop(0).boolean("cA")
    length = fields.pop(0).integer("pathLenConstraint") if fields else None
    if fields or (length is not None and (not authority or length > _MAX_PATH_LENGTH)):
        raise der.DerError("basicConstraints: a field too many, or an absurd path length", 0)
    return BasicConstraints(critical, authority, length)


def _key_usage(value: bytes) -> int:
    _, octets = der.parse(value).bit_string("keyUsage")
    if len(octets) > 2:
        raise der.DerError("keyUsage: more than nine bits", 0)
    return octets[0]
