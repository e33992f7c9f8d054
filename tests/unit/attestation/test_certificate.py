from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.unit.attestation.chains import NOW, World, new_key, rebuilt, tlv

from alcove.attestation.certificate import parse_certificate
from alcove.attestation.policy import GenuineOnly
from alcove.attestation.verify import verify
from alcove.codec import der
from alcove.errors import AttestationError

VERSION, SERIAL, ALGORITHM, ISSUER, VALIDITY, SUBJECT, KEY, EXTENSIONS = range(8)
BASIC_CONSTRAINTS = "0603551d13"
KEY_USAGE = "0603551d0f"
LEAF_CONSTRAINTS = f"{BASIC_CONSTRAINTS}0101ff04023000"
LEAF_USAGE = f"{KEY_USAGE}0404030206c0"
UNKNOWN = "06032a0304"


def extensions(*items: str) -> bytes:
    """The extensions field of a tbsCertificate; each item is the hexadecimal content of one extension."""
    return tlv(0xA3, tlv(der.SEQUENCE, b"".join(tlv(der.SEQUENCE, bytes.fromhex(item)) for item in items)))


def step(world: World, leaf: bytes) -> int | None:
    """The step that refuses a document of `leaf`, None when it is accepted."""
    try:
        verify(world.document(certificate=leaf), roots=[world.root], policy=GenuineOnly(), at=NOW)
    except AttestationError as error:
        return error.step
    return None


@pytest.mark.parametrize(
    "items",
    [
        [LEAF_CONSTRAINTS, LEAF_USAGE],
        [LEAF_USAGE, LEAF_CONSTRAINTS],
        [f"{BASIC_CONSTRAINTS}04023000", LEAF_USAGE],  # not critical
        [f"{BASIC_CONSTRAINTS}01010004023000", LEAF_USAGE],  # explicitly not critical
        [f"{BASIC_CONSTRAINTS}0101ff04053003010100", LEAF_USAGE],  # explicitly no authority
        [LEAF_CONSTRAINTS, f"{KEY_USAGE}0404030206c0", f"{UNKNOWN}0400"],
        [LEAF_CONSTRAINTS, LEAF_USAGE, f"{UNKNOWN}0101000400"],
        [LEAF_CONSTRAINTS, f"{KEY_USAGE}040403020780"],
    ],
)
def test_leaves_with_fitting_extensions_are_accepted(world: World, items: list[str]) -> None:
    """Order, criticality of the two known extensions and unknown uncritical ones do not matter."""
    assert step(world, world.rebuilt_leaf({EXTENSIONS: extensions(*items)})) is None


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([LEAF_USAGE], 10),
        ([LEAF_CONSTRAINTS], 10),
        ([f"{BASIC_CONSTRAINTS}0101ff040530030101ff", LEAF_USAGE], 10),  # an authority
        ([f"{BASIC_CONSTRAINTS}0101ff040830060101ff020100", LEAF_USAGE], 10),
        ([LEAF_CONSTRAINTS, f"{KEY_USAGE}040403020106"], 10),  # may not sign data
        ([LEAF_CONSTRAINTS, f"{KEY_USAGE}040403020204"], 10),
        ([LEAF_CONSTRAINTS, f"{KEY_USAGE}04050303070080"], 10),  # the ninth bit is not the first
        ([LEAF_CONSTRAINTS, LEAF_USAGE, f"{UNKNOWN}0101ff0400"], 10),
        ([LEAF_CONSTRAINTS, LEAF_CONSTRAINTS, LEAF_USAGE], 6),
        ([LEAF_CONSTRAINTS, LEAF_USAGE, LEAF_USAGE], 6),
        ([LEAF_CONSTRAINTS, LEAF_USAGE, f"{UNKNOWN}0400", f"{UNKNOWN}0400"], 6),
        ([f"{BASIC_CONSTRAINTS}0101ff04053003020100", LEAF_USAGE], 6),  # a path length without an authority
        ([f"{BASIC_CONSTRAINTS}0101ff040830060101ff020180", LEAF_USAGE], 6),  # negative
        ([f"{BASIC_CONSTRAINTS}0101ff040730050101ff0200", LEAF_USAGE], 6),  # empty
        ([f"{BASIC_CONSTRAINTS}0101ff040930070101ff02020100", LEAF_USAGE], 6),  # absurd
        ([f"{BASIC_CONSTRAINTS}0101ff04053003010101", LEAF_USAGE], 6),  # a boolean that is neither
        ([f"{BASIC_CONSTRAINTS}0101ff040430020500", LEAF_USAGE], 6),  # an unknown field
        ([f"{BASIC_CONSTRAINTS}0101ff0403300000", LEAF_USAGE], 6),  # bytes after it
        ([f"{BASIC_CONSTRAINTS}01010104023000", LEAF_USAGE], 6),
        ([f"{BASIC_CONSTRAINTS}0101ff03023000", LEAF_USAGE], 6),
        ([f"{BASIC_CONSTRAINTS}0101ff040230000500", LEAF_USAGE], 6),
        ([LEAF_CONSTRAINTS, f"{KEY_USAGE}0404030206c1"], 6),  # unused bits that are set
        ([LEAF_CONSTRAINTS, f"{KEY_USAGE}0404030208c0"], 6),
        ([LEAF_CONSTRAINTS, f"{KEY_USAGE}0403030100"], 6),
        ([LEAF_CONSTRAINTS, f"{KEY_USAGE}04020300"], 6),
        ([LEAF_CONSTRAINTS, f"{KEY_USAGE}0406030400808080"], 6),
        ([LEAF_CONSTRAINTS, LEAF_USAGE, "06000400"], 6),
        ([LEAF_CONSTRAINTS, LEAF_USAGE, UNKNOWN], 6),
    ],
)
def test_leaves_with_other_extensions_are_refused(world: World, items: list[str], expected: int) -> None:
    """Malformed ones fail as step 6, unfit ones as step 10."""
    assert step(world, world.rebuilt_leaf({EXTENSIONS: extensions(*items)})) == expected


def spki(key: ec.EllipticCurvePublicKey, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> bytes:
    return key.public_bytes(Encoding.DER, form)


def point(prefix: bytes) -> bytes:
    """A P-384 SubjectPublicKeyInfo around any point."""
    algorithm = bytes.fromhex("301006072a8648ce3d020106052b81040022")
    return tlv(der.SEQUENCE, algorithm + tlv(der.BIT_STRING, b"\0" + prefix))


@pytest.mark.parametrize(
    "key",
    [
        spki(ec.generate_private_key(ec.SECP256R1()).public_key()),
        spki(ec.generate_private_key(ec.SECP521R1()).public_key()),
        point(new_key().public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)),
        point(b"\x06" + bytes(96)),  # hybrid
        point(b"\x04" + bytes(95) + b"\x01"),  # not on the curve
        point(b"\x04" + b"\xff" * 96),  # beyond the field
        point(b"\x04" + bytes(97)),
        point(b"\x04" + bytes(95)),
        point(b"\x05" + bytes(96)),
        point(b"\x00"),
        point(bytes(96)),
    ],
)
def test_keys_that_are_no_uncompressed_p384_points_are_refused(world: World, key: bytes) -> None:
    """Other curves, other forms, and numbers that are no point (attestation.md §6, keys)."""
    assert step(world, world.rebuilt_leaf({KEY: key})) == 6


TIME = "170d323630333034303530363030 5a"


@pytest.mark.parametrize(
    "changes",
    [
        {VERSION: bytes.fromhex("a003020101")},
        {VERSION: bytes.fromhex("a00402020002")},
        {VERSION: bytes.fromhex("a0050201020500")},
        {VERSION: bytes.fromhex("020102")},
        {SERIAL: bytes.fromhex("0200")},
        {SERIAL: bytes.fromhex("0201ff")},
        {SERIAL: bytes.fromhex("02020001")},
        {SERIAL: bytes.fromhex("040101")},
        {ALGORITHM: bytes.fromhex("300a06082a8648ce3d040302")},
        {ALGORITHM: bytes.fromhex("300c06082a8648ce3d0403030500")},
        {ISSUER: bytes.fromhex("3100")},
        {VALIDITY: bytes.fromhex(f"301e{TIME}{TIME}".replace("323630333034", "323630323330"))},
        {VALIDITY: bytes.fromhex(f"300f{TIME}")},
        {VALIDITY: bytes.fromhex(f"302d{TIME}{TIME}{TIME}")},
        {SUBJECT: bytes.fromhex("0500")},
        {SUBJECT: b""},
        {EXTENSIONS: b""},
        {EXTENSIONS: tlv(0xA3, b"")},
        {EXTENSIONS: extensions() + bytes.fromhex("0500")},
        {EXTENSIONS: tlv(0xA3, bytes.fromhex("30003000"))},
    ],
)
def test_certificates_of_another_shape_are_refused(world: World, changes: dict[int, bytes]) -> None:
    """Each field of the tbsCertificate has one form, and nothing stands beside the fields."""
    assert step(world, world.rebuilt_leaf(changes)) == 6


def test_the_issuers_name_must_be_the_parents(world: World) -> None:
    """A signature by the right key under another name is no link."""
    assert step(world, world.rebuilt_leaf({ISSUER: bytes.fromhex("3000")})) == 8


@pytest.mark.parametrize("outer", ["300a06082a8648ce3d040302", "300c06082a8648ce3d0403030500"])
def test_the_outer_algorithm_is_checked(world: World, outer: str) -> None:
    """ecdsa-with-SHA384 outside as inside, without parameters."""
    tbs, _, signature = der.parse(world.leaf).children(der.SEQUENCE, "certificate")
    for tail in (signature.raw, signature.raw + b"\x05\x00"):
        assert step(world, tlv(der.SEQUENCE, tbs.raw + bytes.fromhex(outer) + tail)) == 6


def test_a_padded_signature_is_refused(world: World) -> None:
    """Bytes after the two numbers of a certificate's signature, and unused bits, are not ignored."""
    tbs, algorithm, signature = der.parse(world.leaf).children(der.SEQUENCE, "certificate")
    padded = tlv(der.BIT_STRING, signature.content + b"\0")
    assert step(world, tlv(der.SEQUENCE, tbs.raw + algorithm.raw + padded)) == 8
    unused = tlv(der.BIT_STRING, b"\x01" + signature.content[1:-1] + b"\0")
    assert step(world, tlv(der.SEQUENCE, tbs.raw + algorithm.raw + unused)) == 6


AUTHORITY_USAGE = f"{KEY_USAGE}0101ff040403020204"


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([f"{BASIC_CONSTRAINTS}0101ff040830060101ff020100", AUTHORITY_USAGE], None),
        ([f"{BASIC_CONSTRAINTS}0101ff040530030101ff", AUTHORITY_USAGE], None),
        ([f"{BASIC_CONSTRAINTS}040830060101ff020100", AUTHORITY_USAGE], 10),  # not critical
        ([f"{BASIC_CONSTRAINTS}0101ff04023000", AUTHORITY_USAGE], 10),  # no authority
        ([AUTHORITY_USAGE], 10),
        ([f"{BASIC_CONSTRAINTS}0101ff040530030101ff"], 10),
        ([f"{BASIC_CONSTRAINTS}0101ff040530030101ff", f"{KEY_USAGE}0101ff040403020780"], 10),
        ([f"{BASIC_CONSTRAINTS}0101ff040530030101ff", AUTHORITY_USAGE, f"{UNKNOWN}0101ff0400"], 10),
    ],
)
def test_authorities_must_be_authorities(world: World, items: list[str], expected: int | None) -> None:
    """Critical basicConstraints with CA, keyUsage with keyCertSign, nothing critical that is unknown."""
    zonal = world.issuers[2]
    instance = rebuilt(world.cabundle[3], zonal.key, {EXTENSIONS: extensions(*items)})
    document = world.document(cabundle=[*world.cabundle[:3], instance])
    try:
        verify(document, roots=[world.root], policy=GenuineOnly(), at=NOW)
        found = None
    except AttestationError as error:
        found = error.step
    assert found == expected


def test_path_lengths_are_respected(world: World) -> None:
    """A zonal authority that allows none below it has one too many."""
    none_below = extensions(f"{BASIC_CONSTRAINTS}0101ff040830060101ff020100", AUTHORITY_USAGE)
    zonal = rebuilt(world.cabundle[2], world.issuers[1].key, {EXTENSIONS: none_below})
    document = world.document(cabundle=[*world.cabundle[:2], zonal, world.cabundle[3]])
    with pytest.raises(AttestationError, match="authorities below it") as caught:
        verify(document, roots=[world.root], policy=GenuineOnly(), at=NOW)
    assert caught.value.step == 10


def test_names_from_a_document_cannot_command_a_terminal(world: World) -> None:
    """A common name with control characters is shown escaped."""
    name = tlv(der.SEQUENCE, tlv(0x31, tlv(der.SEQUENCE, bytes.fromhex("0603550403") + tlv(0x0C, b"\x1b[2Jx"))))
    certificate = parse_certificate(world.rebuilt_leaf({SUBJECT: name}))
    assert certificate.common_name == "'\\x1b[2Jx'"
