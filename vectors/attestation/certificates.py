"""Documents whose leaf, or an authority above it, is particular. All are signed by the keys that they name."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from vectors.attestation.cases import add, invalid, verified
from vectors.attestation.items import sequence, tlv
from vectors.attestation.world import (
    BEGIN,
    CONSTRAINTS,
    CRITICAL,
    END,
    INSTANCE,
    LEAF,
    LEAF_CONSTRAINTS,
    LEAF_USAGE,
    REGIONAL,
    SPKI,
    UNKNOWN,
    USAGE,
    VERSION,
    ZONAL,
    authority,
    chained,
    extension,
    extensions,
    leaf,
    point,
    root,
    spki,
    utc,
)
from vectors.collection import Collection

vector = Collection("document")

FALSE = bytes.fromhex("010100")
GOOD = leaf()
MORE = extension(UNKNOWN, b"")
SIGN = bytes.fromhex("030206c0")  # digitalSignature, nonRepudiation


def _leaf(name: str, comment: str, step: int | None, **changes: bytes | None) -> None:
    """A case with a changed leaf directly under the root."""
    fields = verified() if step is None else invalid(step)
    add(vector, f"leaf_{name}", comment, fields, lambda: chained(root(), own=leaf(**changes)))


def _bytes(name: str, comment: str, own: bytes) -> None:
    """A case with other bytes in the leaf's place."""
    add(vector, f"leaf_{name}", comment, invalid(6), lambda: chained(root(), own=own))


def constraints(value: bytes, critical: bytes = CRITICAL) -> bytes:
    """A leaf's extensions with other basicConstraints."""
    return extensions(extension(CONSTRAINTS, value, critical=critical), LEAF_USAGE)


def usage(value: str) -> bytes:
    """A leaf's extensions with another keyUsage."""
    return extensions(LEAF_CONSTRAINTS, extension(USAGE, bytes.fromhex(value)))


def _accepted() -> None:
    table = {
        "extensions_reordered": ("keyUsage comes first.", extensions(LEAF_USAGE, LEAF_CONSTRAINTS)),
        "constraints_not_critical": ("basicConstraints is not critical.", constraints(sequence(), b"")),
        "constraints_false": ("basicConstraints is explicitly not critical.", constraints(sequence(), FALSE)),
        "constraints_ca_false": ("CA is explicitly false.", constraints(sequence(FALSE))),
        "unknown": ("An unknown extension that is not critical.", extensions(LEAF_CONSTRAINTS, LEAF_USAGE, MORE)),
        "unknown_false": (
            "An unknown extension, explicitly not critical.",
            extensions(LEAF_CONSTRAINTS, LEAF_USAGE, extension(UNKNOWN, b"", critical=FALSE)),
        ),
        "usage_one_bit": ("keyUsage has digitalSignature alone.", usage("03020780")),
        "usage_nine_bits": ("keyUsage has all nine bits.", usage("030307ff80")),
    }
    for name, (comment, value) in table.items():
        _leaf(name, comment, None, extensions=value)


def _constraints() -> None:
    table = {
        "absent": ("No basicConstraints.", 10, extensions(LEAF_USAGE)),
        "twice": ("basicConstraints twice.", 6, extensions(LEAF_CONSTRAINTS, LEAF_CONSTRAINTS, LEAF_USAGE)),
        "ca": ("The leaf is an authority.", 10, constraints(sequence(CRITICAL))),
        "ca_path": ("An authority with path length 0.", 10, constraints(sequence(CRITICAL, b"\2\1\0"))),
        "path_alone": ("A path length without CA.", 6, constraints(sequence(b"\2\1\0"))),
        "path_empty": ("A path length without a value.", 6, constraints(sequence(CRITICAL, b"\2\0"))),
        "path_negative": ("A path length of -1.", 6, constraints(sequence(CRITICAL, b"\2\1\xff"))),
        "path_absurd": ("A path length of 256.", 6, constraints(sequence(CRITICAL, b"\2\2\1\0"))),
        "boolean_one": ("CA is 01.", 6, constraints(sequence(b"\1\1\1"))),
        "boolean_empty": ("CA has no value.", 6, constraints(sequence(b"\1\0"))),
        "boolean_of_two": ("CA has two bytes.", 6, constraints(sequence(b"\1\2\xff\xff"))),
        "unknown_field": ("A null in it.", 6, constraints(sequence(b"\5\0"))),
        "field_too_many": ("A third field.", 6, constraints(sequence(CRITICAL, b"\2\1\0", b"\2\1\0"))),
        "followed": ("A byte after it.", 6, constraints(sequence() + b"\0")),
        "empty": ("The extension is empty.", 6, constraints(b"")),
        "set": ("A SET in place of the SEQUENCE.", 6, constraints(tlv(0x31))),
    }
    for name, (comment, step, value) in table.items():
        _leaf(f"constraints_{name}", comment, step, extensions=value)


def _usage() -> None:
    table = {
        "cert_sign": ("keyCertSign alone.", 10, "03020204"),
        "none_of_ours": ("cRLSign alone.", 10, "03020102"),
        "ninth_bit": ("decipherOnly alone, the ninth bit, is not the first.", 10, "0303070080"),
        "unused_bits_set": ("An unused bit is set.", 6, "030206c1"),
        "eight_unused_bits": ("Eight unused bits.", 6, "030208c0"),
        "empty": ("No bits.", 6, "030100"),
        "no_content": ("No octet at all.", 6, "0300"),
        "three_octets": ("More bits than there are.", 6, "030400808080"),
        "octet_string": ("An OCTET STRING.", 6, "0402c000"),
        "followed": ("A null after it.", 6, "030206c00500"),
    }
    for name, (comment, step, value) in table.items():
        _leaf(f"usage_{name}", comment, step, extensions=usage(value))
    _leaf("usage_absent", "No keyUsage.", 10, extensions=extensions(LEAF_CONSTRAINTS))
    _leaf("usage_twice", "keyUsage twice.", 6, extensions=extensions(LEAF_CONSTRAINTS, LEAF_USAGE, LEAF_USAGE))


def _extensions() -> None:
    both = (LEAF_CONSTRAINTS, LEAF_USAGE)
    table = {
        "unknown_critical": (
            "An unknown critical extension.",
            10,
            extensions(*both, extension(UNKNOWN, b"", critical=CRITICAL)),
        ),
        "unknown_twice": ("An unknown extension twice.", 6, extensions(*both, MORE, MORE)),
        "critical_of_one": ("A critical flag of 01.", 6, constraints(sequence(), b"\1\1\1")),
        "wrapped_in_bits": (
            "basicConstraints in a BIT STRING.",
            6,
            extensions(sequence(CONSTRAINTS, CRITICAL, tlv(3, b"\0", sequence())), LEAF_USAGE),
        ),
        "fourth_field": (
            "An extension of four fields.",
            6,
            extensions(*both, sequence(UNKNOWN, CRITICAL, tlv(4), b"\5\0")),
        ),
        "without_value": ("An extension without a value.", 6, extensions(*both, sequence(UNKNOWN))),
        "identifier_empty": ("An extension without a name.", 6, extensions(*both, sequence(b"\6\0", tlv(4)))),
        "identifier_text": ("An extension whose name is text.", 6, extensions(*both, sequence(b"\x0c\1x", tlv(4)))),
        "absent": ("No extensions.", 6, b""),
        "empty": ("Extensions without their list.", 6, tlv(0xA3)),
        "two_lists": ("Two lists of extensions.", 6, tlv(0xA3, sequence(*both), sequence())),
        "followed": ("A null after the list of extensions.", 6, tlv(0xA3, sequence(*both), b"\5\0")),
        "tag": ("Extensions in the place of the issuer's identifier.", 6, tlv(0xA1, sequence(*both))),
    }
    for name, (comment, step, value) in table.items():
        _leaf(f"extensions_{name}", comment, step, extensions=value)
    _leaf("extensions_twice", "The extensions field twice.", 6, more=extensions(*both))


def _keys() -> None:
    compressed = point(LEAF, PublicFormat.CompressedPoint)
    whole = point(LEAF)
    other = ec.derive_private_key(5, ec.SECP256R1()).public_key()
    p256 = other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    claimed = sequence(bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107"), tlv(3, b"\0" + whole))
    table = {
        "compressed": ("A compressed point.", spki(compressed)),
        "hybrid": ("A point in the hybrid form.", spki(bytes([6 | whole[-1] & 1]) + whole[1:])),
        "truncated": ("A point that is a byte short.", spki(whole[:-1])),
        "oversized": ("A point that is a byte long.", spki(whole + b"\0")),
        "without_form": ("A point without its 04.", spki(whole[1:])),
        "at_infinity": ("The point at infinity.", spki(b"\0")),
        "not_on_the_curve": ("A point that is not on the curve.", spki(whole[:-1] + bytes([whole[-1] ^ 1]))),
        "beyond_the_field": ("Coordinates beyond the field.", spki(b"\4" + b"\xff" * 96)),
        "p256": ("A P-256 key.", p256),
        "named_p256": ("A P-384 point, said to be on P-256.", claimed),
        "rsa": (
            "A key of RSA's kind.",
            sequence(bytes.fromhex("300d06092a864886f70d0101010500"), tlv(3, b"\0" + whole)),
        ),
        "unused_bits": ("A point with unused bits.", sequence(SPKI, tlv(3, b"\1" + whole))),
        "octet_string": ("A point in an OCTET STRING.", sequence(SPKI, tlv(4, b"\0" + whole))),
        "followed": ("A null after the point.", sequence(SPKI, tlv(3, b"\0" + whole), b"\5\0")),
        "parameters": ("A null after the curve.", sequence(sequence(SPKI[2:], b"\5\0"), tlv(3, b"\0" + whole))),
    }
    for name, (comment, value) in table.items():
        _leaf(f"key_{name}", comment, 6, key=value)


def _fields() -> None:
    table = {
        "version_2": ("Version 2.", {"version": bytes.fromhex("a003020101")}),
        "version_absent": ("No version, which is 1.", {"version": None}),
        "version_bare": ("The version without its wrapper.", {"version": VERSION[2:]}),
        "version_followed": ("A null in the version's wrapper.", {"version": bytes.fromhex("a0050201020500")}),
        "version_padded": ("The version with a leading zero.", {"version": bytes.fromhex("a00402020002")}),
        "serial_empty": ("A serial number without a value.", {"serial": b"\2\0"}),
        "serial_negative": ("A negative serial number.", {"serial": b"\2\1\xff"}),
        "serial_padded": ("A serial number with a needless zero.", {"serial": b"\2\2\0\1"}),
        "serial_octets": ("An OCTET STRING as serial number.", {"serial": b"\4\1\1"}),
        "inner_sha256": ("ecdsa-with-SHA256 inside.", {"inner": bytes.fromhex("300a06082a8648ce3d040302")}),
        "outer_sha256": ("ecdsa-with-SHA256 outside.", {"outer": bytes.fromhex("300a06082a8648ce3d040302")}),
        "inner_null": ("A null after the inner algorithm.", {"inner": bytes.fromhex("300c06082a8648ce3d0403030500")}),
        "outer_null": ("A null after the outer algorithm.", {"outer": bytes.fromhex("300c06082a8648ce3d0403030500")}),
        "algorithm_text": ("An algorithm that is text.", {"outer": bytes.fromhex("300a0c082a8648ce3d040303")}),
        "issuer_set": ("A SET as issuer.", {"issuer": tlv(0x31)}),
        "subject_null": ("A null as subject.", {"subject": b"\5\0"}),
        "subject_attribute_of_three": (
            "A null in an attribute of the subject.",
            {"subject": sequence(tlv(0x31, sequence(bytes.fromhex("0603550403"), tlv(0x0C, b"x"), b"\5\0")))},
        ),
        "subject_absent": ("No subject.", {"subject": None}),
        "followed": ("A null after the signature.", {"trailer": b"\5\0"}),
        "signature_octets": ("The signature in an OCTET STRING.", {"proof": tlv(4, b"\0" + bytes(70))}),
        "signature_unused_bits": ("The signature with unused bits.", {"proof": tlv(3, b"\1" + bytes(70))}),
        "signature_empty": ("No signature.", {"proof": tlv(3, b"\0")}),
    }
    for name, (comment, changes) in table.items():
        _leaf(name, comment, 6, **changes)
    _bytes("rubbish", "No certificate.", b"\x30\3\2\1\1")
    _bytes("trailing", "A byte follows the certificate.", GOOD + b"\0")
    _bytes("cut", "The certificate's last byte is missing.", GOOD[:-1])
    _bytes("length_endless", "An indefinite length.", b"\x30\x80" + GOOD[4:] + b"\0\0")
    _bytes("length_padded", "A length with a leading zero.", b"\x30\x83\0" + GOOD[2:4] + GOOD[4:])
    _bytes("length_long", "A length of five bytes.", b"\x30\x85\0\0\0" + GOOD[2:4] + GOOD[4:])
    _bytes("length_reserved", "A reserved length.", b"\x30\xff" + GOOD[2:])
    _bytes("tag_set", "A SET in place of the outer SEQUENCE.", b"\x31" + GOOD[1:])
    _bytes("tag_of_two_bytes", "A tag of two bytes.", b"\x3f\x30" + GOOD[1:])
    _bytes("child_beyond", "The tbsCertificate runs past its parent.", GOOD[:6] + b"\x03\xff" + GOOD[8:])


def _times() -> None:
    good = utc(END)
    general = tlv(0x18, END.strftime("%Y%m%d%H%M%SZ").encode())
    table = {
        "general_early": ("A GeneralizedTime before 2050.", general),
        "without_z": ("No Z.", tlv(0x17, good[2:-1])),
        "offset": ("A zone in place of the Z.", tlv(0x17, good[2:-1] + b"+0000")),
        "without_seconds": ("No seconds.", tlv(0x17, good[2:-3] + b"Z")),
        "letters": ("A letter among the digits.", tlv(0x17, b"26o601030000Z")),
        "february_30": ("30 February.", tlv(0x17, b"270230000000Z")),
        "april_31": ("31 April.", tlv(0x17, b"270431000000Z")),
        "february_29": ("29 February in a common year.", tlv(0x17, b"270229000000Z")),
        "month_13": ("The thirteenth month.", tlv(0x17, b"271301000000Z")),
        "hour_24": ("The hour 24.", tlv(0x17, b"260602240000Z")),
        "second_60": ("The second 60.", tlv(0x17, b"260602000060Z")),
        "integer": ("An INTEGER.", tlv(0x02, good[2:])),
        "empty": ("No digits.", tlv(0x17)),
    }
    for name, (comment, value) in table.items():
        _leaf(f"time_{name}", comment, 6, validity=sequence(utc(BEGIN), value))
    _leaf("time_one", "One time alone.", 6, validity=sequence(good))
    _leaf("time_three", "Three times.", 6, validity=sequence(utc(BEGIN), good, good))
    year = tlv(0x18, b"20500101000000Z")
    _leaf("time_general", "A GeneralizedTime from 2050 on.", None, validity=sequence(utc(BEGIN), year))


def _authorities() -> None:
    ca = extension(CONSTRAINTS, sequence(CRITICAL), critical=CRITICAL)
    signs = extension(USAGE, bytes.fromhex("03020204"), critical=CRITICAL)
    table: dict[str, tuple[str, int | None, bytes]] = {
        "like_the_platforms": ("keyCertSign alone.", None, extensions(ca, signs)),
        "not_critical": (
            "basicConstraints not critical.",
            10,
            extensions(extension(CONSTRAINTS, sequence(CRITICAL)), signs),
        ),
        "no_authority": ("Empty basicConstraints.", 10, extensions(LEAF_CONSTRAINTS, signs)),
        "without_constraints": ("No basicConstraints.", 10, extensions(signs)),
        "without_usage": ("No keyUsage.", 10, extensions(ca)),
        "may_not_sign": (
            "keyUsage without keyCertSign.",
            10,
            extensions(ca, extension(USAGE, bytes.fromhex("03020186")[:3] + b"\x82")),
        ),
        "signs_data": ("keyUsage has digitalSignature alone.", 10, extensions(ca, extension(USAGE, SIGN))),
        "unknown_critical": (
            "An unknown critical extension.",
            10,
            extensions(ca, signs, extension(UNKNOWN, b"", critical=CRITICAL)),
        ),
    }
    above = (root(), authority(REGIONAL), authority(ZONAL))
    for name, (comment, step, value) in table.items():
        add(
            vector,
            f"authority_{name}",
            comment,
            verified() if step is None else invalid(step),
            lambda value=value: chained(*above, authority(INSTANCE, extensions=value), own=leaf(INSTANCE)),
        )


_accepted()
_constraints()
_usage()
_extensions()
_keys()
_fields()
_times()
_authorities()
