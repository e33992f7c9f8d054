"""One certificate of the chain, parsed strictly (attestation.md §4.1, §5.2 step 6).

Core: DER in, a checked certificate out.

Only the shape that the platform issues is a certificate here: X.509 version 3, ecdsa-with-SHA384 inside and outside, an
uncompressed P-384 key, a list of extensions without duplicates. One parser, ours, reads everything that decides trust,
so there are no two readings of one certificate; `cryptography` does the mathematics of keys and signatures. Its own
X.509 parser would refuse an explicit ``critical FALSE``, which verifiers must accept (attestation.md §6).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384

from alcove.codec import der
from alcove.codec.der import Node

MAX_CERTIFICATE: Final = 1024  # attestation.md §2: bytes of DER

_ECDSA_WITH_SHA384: Final = bytes.fromhex("300a06082a8648ce3d040303")
# SubjectPublicKeyInfo of id-ecPublicKey, secp384r1, up to the 04 of the uncompressed point
_P384_PREFIX: Final = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
_P384: Final = SECP384R1()
_P384_SPKI_SIZE: Final = 120
_P384_POINT_SIZE: Final = 97
_ES384: Final = ECDSA(SHA384())
_VERSION_3: Final = bytes.fromhex("a003020102")
_EXTENSIONS: Final = 0xA3
_SET: Final = 0x31
_NAME_LABELS: Final = {  # RFC 4514 §3, by encoded object identifier
    bytes.fromhex("550403"): "CN",
    bytes.fromhex("550406"): "C",
    bytes.fromhex("550407"): "L",
    bytes.fromhex("550408"): "ST",
    bytes.fromhex("55040a"): "O",
    bytes.fromhex("55040b"): "OU",
}
_BASIC_CONSTRAINTS: Final = bytes.fromhex("551d13")
_KEY_USAGE: Final = bytes.fromhex("551d0f")
_DIGITAL_SIGNATURE: Final = 0x80  # RFC 5280 §4.2.1.3, bit 0
_KEY_CERT_SIGN: Final = 0x04  # bit 5
_MAX_PATH_LENGTH: Final = 127  # one octet; more is absurd in a chain of at most ten
_SHORT: Final = 20  # bytes: holds every basicConstraints and keyUsage of the platform, and no key identifier
_KEY_ID_SIZE: Final = 20  # bytes of SHA-1: RFC 5280 §4.2.1.2 method 1


@dataclass(frozen=True, slots=True)
class BasicConstraints:
    """The basicConstraints extension; `path_length` is None when absent."""

    critical: bool
    is_authority: bool
    path_length: int | None


_Extension = tuple[bytes, bool, BasicConstraints | int | None]  # identifier, criticality, what we interpret of it

# The platform's key identifiers, which are most of the extensions: all of their bytes but the hash at the end.
_KEY_IDS: Final[dict[bytes, _Extension]] = {
    bytes.fromhex("301d0603551d0e04160414"): (bytes.fromhex("551d0e"), False, None),
    bytes.fromhex("301f0603551d23041830168014"): (bytes.fromhex("551d23"), False, None),
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """A well-formed certificate. Nothing about it is trusted yet.

    `issuer` and `subject` are the encoded names and `names` the subject's parts as (label, text); `key_usage` is the
    first octet of the bit string, and None stands for an absent extension. `unknown_critical` holds the encoded object
    identifiers, in hexadecimal, of critical extensions that we do not interpret. `signed` is the encoded
    tbsCertificate, over which `signature` was made.
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
    names: tuple[tuple[str, str], ...]
    signed: bytes
    signature: bytes

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
        return next((_printable(text) for label, text in self.names if label == "CN"), self.subject_text)

    @property
    def subject_text(self) -> str:
        """The subject as ``C=US, O=Amazon, …`` in the encoded order; fit for a terminal."""
        return ", ".join(f"{label}={_printable(text)}" for label, text in self.names)

    def is_signed_by(self, parent: Certificate) -> bool:
        """Whether `parent` is the issuer by name, and its key made the signature: one P-384 verification."""
        if self.issuer != parent.subject:
            return False
        try:
            parent.public_key.verify(self.signature, self.signed, _ES384)
        except (ValueError, InvalidSignature):
            return False
        return True


def parse_certificate(data: bytes) -> Certificate:
    """The certificate in `data`.

    Raises:
        ValueError: `data` is not exactly one certificate of the shape above; `DerError` where bytes are wrong.
    """
    outer = der.parse(data)
    tbs, algorithm, signature = outer.children(der.SEQUENCE, "certificate", 3)
    if algorithm.raw != _ECDSA_WITH_SHA384:
        raise der.DerError("certificate: the signature algorithm is not ecdsa-with-SHA384", algorithm.offset)
    unused, signature_value = signature.bit_string("signature")
    if unused:
        raise der.DerError("signature: unused bits", signature.offset)
    version, serial, inner, issuer, validity, subject, key, wrapper = tbs.children(der.SEQUENCE, "tbsCertificate", 8)
    if version.raw != _VERSION_3:
        raise der.DerError("version: not 3", version.offset)
    if inner.raw != algorithm.raw:
        raise der.DerError("tbsCertificate: another signature algorithm inside than outside", inner.offset)
    not_before, not_after = (node.time("validity") for node in validity.children(der.SEQUENCE, "validity", 2))
    constraints, usage, unknown = _extensions(wrapper)
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
        public_key=_public_key(key),
        names=_names(subject.raw),
        signed=tbs.raw,
        signature=signature_value,
    )


def _public_key(node: Node) -> EllipticCurvePublicKey:
    raw = node.raw
    if not raw.startswith(_P384_PREFIX) or len(raw) != _P384_SPKI_SIZE:
        raise der.DerError("subjectPublicKeyInfo: not an uncompressed P-384 key", node.offset)
    try:
        return EllipticCurvePublicKey.from_encoded_point(_P384, raw[-_P384_POINT_SIZE:])
    except ValueError as error:
        raise der.DerError(f"subjectPublicKeyInfo: {error}", node.offset) from None


@lru_cache(maxsize=128)  # a Region, a zone and an instance keep their names for days
def _names(data: bytes) -> tuple[tuple[str, str], ...]:
    """The parts of a name, for people only: names are compared as bytes."""
    return tuple(name for part in der.parse(data).children(der.SEQUENCE, "name") for name in _name_part(part.raw))


@lru_cache(maxsize=128)  # the five names of a chain have thirty parts, and few of them differ
def _name_part(data: bytes) -> tuple[tuple[str, str], ...]:
    found = []
    for attribute in der.parse(data).children(_SET, "name"):
        identifier, value = attribute.children(der.SEQUENCE, "name", 2)
        oid = identifier.expect(der.OBJECT_IDENTIFIER, "name").content
        found.append((_NAME_LABELS.get(oid) or oid.hex(), value.content.decode(errors="backslashreplace")))
    return tuple(found)


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _extensions(wrapper: Node) -> tuple[BasicConstraints | None, int | None, tuple[str, ...]]:
    (inner,) = wrapper.children(_EXTENSIONS, "extensions", 1)
    constraints: BasicConstraints | None = None
    usage: int | None = None
    unknown: list[str] = []
    seen: set[bytes] = set()
    for node in inner.children(der.SEQUENCE, "extensions"):
        if node.end - node.offset <= _SHORT:
            identifier, critical, value = _short(node)
        else:
            identifier, critical, value = _KEY_IDS.get(node.raw[:-_KEY_ID_SIZE]) or _extension(node)
        if identifier in seen:
            raise der.DerError("extensions: the same extension twice", node.offset)
        seen.add(identifier)
        if isinstance(value, BasicConstraints):
            constraints = value
        elif value is not None:
            usage = value
        elif critical:
            unknown.append(identifier.hex())
    return constraints, usage, tuple(unknown)


def _short(node: Node) -> _Extension:
    try:
        return _short_extension(node.raw)
    except der.DerError:  # whose offset counts from the extension
        return _extension(node)


@lru_cache(maxsize=128)  # a chain has ten of these, and all chains of the platform the same
def _short_extension(raw: bytes) -> _Extension:
    return _extension(der.parse(raw))


def _extension(node: Node) -> _Extension:
    fields = node.children(der.SEQUENCE, "extension")
    critical = False
    if len(fields) == 3:  # an explicit FALSE is no DER, and seen; attestation.md §6 accepts it
        critical = fields.pop(1).boolean("critical")
    if len(fields) != 2:
        raise der.DerError("extension: not two or three fields", node.offset)
    identifier = fields[0].expect(der.OBJECT_IDENTIFIER, "extnID").content
    if not identifier:
        raise der.DerError("extnID: empty", fields[0].offset)
    value = fields[1].expect(der.OCTET_STRING, "extnValue")
    if identifier == _BASIC_CONSTRAINTS:
        return identifier, critical, _basic_constraints(value, critical=critical)
    return identifier, critical, _key_usage(value) if identifier == _KEY_USAGE else None


def _basic_constraints(value: Node, *, critical: bool) -> BasicConstraints:
    fields = value.inner("basicConstraints").children(der.SEQUENCE, "basicConstraints")
    authority = bool(fields) and fields[0].tag == der.BOOLEAN and fields.pop(0).boolean("cA")
    length = fields.pop(0).integer("pathLenConstraint") if fields else None
    if fields or (length is not None and (not authority or length > _MAX_PATH_LENGTH)):
        raise der.DerError("basicConstraints: a field too many, or an absurd path length", value.offset)
    return BasicConstraints(critical, authority, length)


def _key_usage(value: Node) -> int:
    _, octets = value.inner("keyUsage").bit_string("keyUsage")
    if len(octets) > 2:
        raise der.DerError("keyUsage: more than nine bits", value.offset)
    return octets[0]
