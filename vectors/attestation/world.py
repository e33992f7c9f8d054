"""A chain of authorities with keys that are small numbers, and documents under it.

Every part of a certificate, a payload and an envelope has a default and can be replaced by other bytes.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from vectors.attestation.items import NULL, array, head, integer, mapping, moment, number, octets, sequence, text, tlv

ROOT, REGIONAL, ZONAL, INSTANCE, LEAF, STRANGER = range(11, 17)  # the keys, by their scalars
AT = datetime(2026, 6, 1, 0, 0, 5, tzinfo=UTC)
BEGIN = AT - timedelta(seconds=8)
END = BEGIN + timedelta(hours=3, seconds=3)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
INSTANCE_ID = "i-0123456789abcdef0"
MODULE_ID = f"{INSTANCE_ID}-enc0123456789abcdef"
ES384 = bytes.fromhex("a1013822")
ALGORITHM = bytes.fromhex("300a06082a8648ce3d040303")
VERSION = bytes.fromhex("a003020102")
SPKI = bytes.fromhex("301006072a8648ce3d020106052b81040022")
CONSTRAINTS, USAGE, UNKNOWN = (bytes.fromhex(oid) for oid in ("0603551d13", "0603551d0f", "06032a0304"))
CRITICAL = bytes.fromhex("0101ff")
PCRS = {0: b"\xa0" * 48, 1: b"\xa1" * 48, 2: b"\xa2" * 48, 3: bytes(48), 4: b"\xa4" * 48}

Fields = dict[str, bytes | None]


@cache
def key(scalar: int) -> ec.EllipticCurvePrivateKey:
    """A P-384 key, and no secret."""
    return ec.derive_private_key(scalar, ec.SECP384R1())


def signature(scalar: int, data: bytes) -> bytes:
    """A signature as certificates hold it; the same every time (RFC 6979)."""
    return key(scalar).sign(data, ec.ECDSA(hashes.SHA384(), deterministic_signing=True))


def point(scalar: int, form: PublicFormat = PublicFormat.UncompressedPoint) -> bytes:
    """A public key as a point."""
    return key(scalar).public_key().public_bytes(Encoding.X962, form)


def spki(content: bytes) -> bytes:
    """A subjectPublicKeyInfo around a point."""
    return sequence(SPKI, tlv(0x03, b"\0" + content))


def name(common: str) -> bytes:
    """A name as the platform begins its own: country, organization, unit, common name."""
    parts = ((6, 0x13, "US"), (10, 0x0C, "Amazon"), (11, 0x0C, "AWS"), (3, 0x0C, common))
    return sequence(
        *(tlv(0x31, sequence(bytes([6, 3, 85, 4, at]), tlv(tag, value.encode()))) for at, tag, value in parts)
    )


def utc(time: datetime) -> bytes:
    """A UTCTime."""
    return tlv(0x17, f"{time:%y%m%d%H%M%SZ}".encode())


def validity(begin: datetime, end: datetime) -> bytes:
    """A validity period."""
    return sequence(utc(begin), utc(end))


def extension(oid: bytes, value: bytes, *, critical: bytes = b"") -> bytes:
    """An extension; `critical` is the encoded flag, or nothing."""
    return sequence(oid, critical, tlv(0x04, value))


def extensions(*items: bytes) -> bytes:
    """The extensions field."""
    return tlv(0xA3, sequence(*items))


def authority_extensions(path: int | None, *more: bytes) -> bytes:
    """Of an authority: CA, path length, keyCertSign."""
    constraints = sequence(CRITICAL, b"" if path is None else integer(path))
    usage = bytes.fromhex("03020186")
    return extensions(
        extension(CONSTRAINTS, constraints, critical=CRITICAL), extension(USAGE, usage, critical=CRITICAL), *more
    )


LEAF_CONSTRAINTS = extension(CONSTRAINTS, sequence(), critical=CRITICAL)
LEAF_USAGE = extension(USAGE, bytes.fromhex("030206c0"))


def certificate(names: tuple[str, str], own: int, signer: int, default: Fields, changes: Fields) -> bytes:
    """A certificate of subject and issuer; a change replaces the encoding of a part, or None leaves it out."""
    subject, issuer = names
    parts: Fields = {
        "version": VERSION,
        "serial": integer(own),
        "inner": ALGORITHM,
        "issuer": name(issuer),
        "validity": validity(BEGIN - timedelta(days=1), END + timedelta(days=1)),
        "subject": name(subject),
        "key": spki(point(own)),
        "extensions": b"",
        "more": b"",
        "outer": ALGORITHM,
        "trailer": b"",
        "proof": None,
    }
    parts |= default | changes
    body = ("version", "serial", "inner", "issuer", "validity", "subject", "key", "extensions", "more")
    tbs = sequence(*(parts[part] or b"" for part in body))
    proof = parts["proof"] or tlv(0x03, b"\0" + signature(signer, tbs))
    return sequence(tbs, parts["outer"] or b"", proof, parts["trailer"] or b"")


def root(**changes: bytes | None) -> bytes:
    """The trust anchor."""
    years = validity(datetime(2026, 1, 1, tzinfo=UTC), datetime(2046, 1, 1, tzinfo=UTC))
    default: Fields = {"validity": years, "extensions": authority_extensions(None)}
    return certificate((NAMES[ROOT], NAMES[ROOT]), ROOT, ROOT, default, changes)


NAMES = {
    ROOT: "aws.nitro-enclaves",
    REGIONAL: "00.eu-central-1.aws.nitro-enclaves",
    ZONAL: "00.zonal.eu-central-1.aws.nitro-enclaves",
    INSTANCE: f"{INSTANCE_ID}.eu-central-1.aws.nitro-enclaves",
}


def authority(own: int, *, path: int | None = None, **changes: bytes | None) -> bytes:
    """The regional, zonal or instance authority."""
    default: Fields = {"extensions": authority_extensions(INSTANCE - own if path is None else path)}
    return certificate((NAMES[own], NAMES[own - 1]), own, own - 1, default, changes)


def leaf(above: int = ROOT, *, signer: int | None = None, **changes: bytes | None) -> bytes:
    """The certificate of an enclave, issued by one of the authorities."""
    common = f"{MODULE_ID}.eu-central-1.aws"
    default: Fields = {
        "serial": integer(0x123456789ABCDEF << 64 | int(AT.timestamp())),
        "validity": validity(BEGIN, END),
        "extensions": extensions(LEAF_CONSTRAINTS, LEAF_USAGE),
    }
    return certificate((common, NAMES[above]), LEAF, above if signer is None else signer, default, changes)


def pcrs(registers: dict[int, bytes], *, endless: bool = False) -> bytes:
    """The registers as a map."""
    return mapping([(number(index), octets(value)) for index, value in registers.items()], endless=endless)


def fields(**changes: bytes | None) -> list[tuple[bytes, bytes]]:
    """The payload's pairs; a change replaces an encoded value, None leaves the pair out."""
    values: Fields = {
        "module_id": text(MODULE_ID),
        "digest": text("SHA384"),
        "timestamp": moment(int(AT.timestamp() * 1000)),
        "pcrs": pcrs(PCRS),
        "certificate": octets(leaf()),
        "cabundle": array([octets(root())]),
        "public_key": NULL,
        "user_data": NULL,
        "nonce": NULL,
    }
    values |= changes
    return [(text(name), value) for name, value in values.items() if value is not None]


def payload(**changes: bytes | None) -> bytes:
    """The payload with changed fields."""
    return mapping(fields(**changes))


def signed_with(scalar: int, content: bytes, protected: bytes = ES384) -> bytes:
    """R ‖ s over the Sig_structure."""
    signed = b"\x84" + text("Signature1") + octets(protected) + b"\x40" + octets(content)
    r, s = decode_dss_signature(signature(scalar, signed))
    return r.to_bytes(48) + s.to_bytes(48)


def envelope(content: bytes, *, protected: bytes = ES384, proof: bytes | None = None, tag: bytes = b"") -> bytes:
    """The COSE_Sign1 over a payload."""
    proof = signed_with(LEAF, content, protected) if proof is None else proof
    return tag + b"\x84" + octets(protected) + b"\xa0" + octets(content) + octets(proof)


def document(**changes: bytes | None) -> bytes:
    """A document with changed fields."""
    return envelope(payload(**changes))


def chained(*authorities: bytes, own: bytes) -> bytes:
    """A document under these authorities."""
    return document(cabundle=array([octets(entry) for entry in authorities]), certificate=octets(own))


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of the DER."""
    return hashlib.sha256(certificate).hexdigest()


def padding(size: int) -> bytes:
    """An unknown pair of the payload that is so long."""
    return text("x") + head(2, size) + bytes(size)
