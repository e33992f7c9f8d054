"""Describing and verifying images that are not as they should be: everything is told, and nothing is trusted."""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.image.archives import METADATA, write
from tests.unit.image.conftest import _make_pem

from alcove.codec import cbor
from alcove.errors import ImageFormatError, InputError
from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.describe import Description, describe, describe_image
from alcove.image.format import CRC_OFFSET, HEADER_SIZE, EifHeader, SectionType
from alcove.image.reader import read_eif
from alcove.image.signature import SignatureEntry, pack_section, parse_section
from alcove.image.signing import Signer, certificate_der
from alcove.image.verify import Expected, ImageRefusedError, verify_image

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
PEM = _make_pem(ec.SECP384R1())
OTHER = _make_pem(ec.SECP256R1())
MakePem = Callable[[ec.EllipticCurve], tuple[bytes, bytes]]


def image(signature: Callable[[bytes], bytes] | None = None, **fields: Any) -> bytes:
    """An image in memory; `signature` makes the signature section of a PCR0."""
    with tempfile.TemporaryDirectory() as scratch:
        path = write(Path(scratch) / "a.eif", **fields)
        if signature is not None:
            data = path.read_bytes()
            file = io.BytesIO(data)
            eif = read_eif(file)
            sections = [NewSection(part.type, (data[part.data_offset : part.end],)) for part in eif.sections]
            write_eif(path, NewHeader(eif.header.flags), sections, signature)
        return path.read_bytes()


SIGNED = image(Signer.from_pem(*PEM).sign)
UNSIGNED = image()


def told(data: bytes, at: dt.datetime = NOW) -> Description:
    """The lenient description."""
    file = io.BytesIO(data)
    return describe(file, read_eif(file, lenient=True), at)


def mended(data: bytes) -> bytes:
    """The same with a checksum that is right for a file without gaps."""
    return (
        data[:CRC_OFFSET]
        + struct.pack(">I", zlib.crc32(data[HEADER_SIZE:], zlib.crc32(data[:CRC_OFFSET])))
        + data[HEADER_SIZE:]
    )


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def with_gap(data: bytes) -> bytes:
    """The second section moved by eight bytes, in the table too."""
    header = EifHeader.parse(data)
    offsets = tuple(
        offset + 8 if 0 < i < header.num_sections else offset for i, offset in enumerate(header.section_offsets)
    )
    at = header.section_offsets[1]
    return replace(header, section_offsets=offsets).pack() + data[HEADER_SIZE:at] + b"hidden!!" + data[at:]


def test_a_sound_image_is_described_without_a_word() -> None:
    """AWS's keys in AWS's order, and no warnings."""
    description = told(SIGNED)
    assert description.warnings == ()
    assert list(description.json) == [
        "EifVersion", "Measurements", "IsSigned", "SigningCertificate", "CheckCRC", "SignatureCheck",
        "ImageName", "ImageVersion", "Metadata",
    ]  # fmt: skip
    assert description.json["SignatureCheck"] is True
    assert description.json["CheckCRC"] is True


@settings(deadline=None)
@given(st.data())
def test_a_flipped_bit_in_a_measured_section_is_named(data: st.DataObject) -> None:
    """One bit anywhere in kernel, command line or ramdisks turns both checks false, and a line says which and why."""
    measured = [
        part for part in read_eif(io.BytesIO(SIGNED)).sections
        if part.type in (SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK)
    ]  # fmt: skip
    part = data.draw(st.sampled_from(measured))
    at = data.draw(st.integers(part.data_offset, part.end - 1))
    description = told(patched(SIGNED, at, bytes([SIGNED[at] ^ 1 << data.draw(st.integers(0, 7))])))
    assert description.json["SignatureCheck"] is False
    assert description.json["CheckCRC"] is False
    assert any(line.startswith("CheckCRC: the header says ") for line in description.warnings)
    assert any(line.startswith("SignatureCheck: it is over the PCR0 of another image") for line in description.warnings)
    with pytest.raises(ImageRefusedError):
        verify_image(io.BytesIO(patched(SIGNED, at, bytes([SIGNED[at] ^ 1]))), Expected(), NOW)


@settings(deadline=None)
@given(st.integers(0, len(SIGNED) - 1), st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_told_or_refused(at: int, bit: int) -> None:
    """In header, metadata or signature too: an error, or a check that is false with its reason."""
    flipped = patched(SIGNED, at, bytes([SIGNED[at] ^ 1 << bit]))
    try:
        description = told(flipped)
    except ImageFormatError:
        return
    assert not (description.json["CheckCRC"] and description.json["SignatureCheck"])
    assert description.warnings
    json.dumps(description.json)


STALE = EifHeader.parse(SIGNED)
SIZES = (*STALE.section_sizes[:5], STALE.section_sizes[5] + 7, *STALE.section_sizes[6:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_gap(SIGNED), "a gap of 8 bytes"),
        (SIGNED + b"tail", "4 bytes follow"),
        (mended(replace(STALE, section_sizes=SIZES).pack() + SIGNED[HEADER_SIZE:]), "nitro-cli writes this"),
        (mended(patched(SIGNED, 6, b"\x02\x40")), "0x0240"),
        (mended(patched(SIGNED, 0x18, b"\0\1")), "reserved"),
        (mended(patched(SIGNED, 0x1C + 8 * 9, b"\1")), "after the last section"),
        (mended(patched(SIGNED, HEADER_SIZE + 2, b"\0\1")), "in a section header"),
    ],
    ids=["gap", "tail", "stale size", "flags", "reserved", "entries", "section flags"],
)
def test_what_others_stumble_over_is_told_and_strict_refuses_it(tmp_path: Path, data: bytes, message: str) -> None:
    """All of AWS's fields come, with a warning; `strict` and `verify` refuse with E35 and step 1."""
    path = tmp_path / "odd.eif"
    path.write_bytes(data)
    description = describe_image(path)
    assert any(message in line for line in description.warnings)
    assert description.json["SignatureCheck"] is True
    assert description.json["Measurements"] == told(SIGNED).json["Measurements"]
    assert "Metadata" in description.json
    with pytest.raises(ImageFormatError, match=message) as caught:
        describe_image(path, strict=True)
    assert (caught.value.code, caught.value.offset is not None) == ("E35", True)
    with pytest.raises(ImageRefusedError) as refused:
        verify_image(io.BytesIO(data), Expected(), NOW)
    assert refused.value.step == 1


@pytest.mark.parametrize(
    ("change", "message", "shown"),
    [
        ({"CustomMetadata": ...}, "CustomMetadata is missing", True),
        ({"DockerInfo": ...}, "DockerInfo is missing", True),
        ({"CustomMetadata": [1]}, "are objects", False),
        ({"ImageName": 7}, "are texts", False),
    ],
)
def test_metadata_that_aws_cannot_read_is_told(
    tmp_path: Path, change: dict[str, Any], message: str, shown: bool
) -> None:
    """A missing optional key is read as null, anything worse leaves the three keys out; `strict` refuses both."""
    item = {key: value for key, value in (json.loads(METADATA.pack()) | change).items() if value is not ...}
    path = write(tmp_path / "a.eif", metadata=json.dumps(item).encode())
    description = describe_image(path)
    assert ("Metadata" in description.json) is shown
    assert any(message in line for line in description.warnings)
    with pytest.raises(ImageFormatError):
        describe_image(path, strict=True)


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"[" * 2000, b"\xff\xfe{\0}\0", b'{"a":NaN}', b'{"a":' * 100 + b"1" + b"}" * 100]
)
def test_metadata_that_is_no_json_is_told(metadata: bytes) -> None:
    """Nothing, deep nesting, UTF-16, NaN: a warning and the rest of the fields."""
    description = told(image(metadata=metadata))
    assert len(description.warnings) == 1
    assert list(description.json) == ["EifVersion", "Measurements", "IsSigned", "CheckCRC"]


def resigned(entry: Callable[[SignatureEntry], object]) -> bytes:
    """An image whose signature section is what `entry` makes of the right one."""

    def sign(pcr0: bytes) -> bytes:
        made = entry(parse_section(Signer.from_pem(*PEM).sign(pcr0)))
        return pack_section(made) if isinstance(made, SignatureEntry) else cbor.encode(made)

    return image(sign)


def rsa_certificate() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "rsa")])
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    built = built.not_valid_before(NOW).not_valid_after(NOW + dt.timedelta(1))
    return built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("entry", "reason", "step"),
    [
        (lambda _: [], "holds no signature", 3),
        (lambda _: {}, "holds no signature", 3),
        (lambda e: replace(e, certificate=b"no PEM"), "not a certificate", 3),
        (lambda e: replace(e, certificate=rsa_certificate()), "not on P-256", 3),
        (lambda e: replace(e, certificate=OTHER[0]), "curve", 4),
        (lambda e: replace(e, certificate=_make_pem(ec.SECP384R1())[0]), "did not make it", 4),
        (lambda e: replace(e, sign1=e.sign1[:-1] + bytes([e.sign1[-1] ^ 1])), "did not make it", 4),
        (lambda e: replace(e, sign1=b"noise"), "signature", 4),
        (lambda _: parse_section(Signer.from_pem(*PEM).sign(bytes(48))), "another image, 000000000000…", 5),
    ],
    ids=["empty array", "no array", "no PEM", "RSA", "curve", "key", "signature", "noise", "PCR0"],
)
def test_a_bad_signature_is_told_with_its_reason(
    entry: Callable[[SignatureEntry], object], reason: str, step: int
) -> None:
    """Describe gives false and why; verify stops at the step."""
    data = resigned(entry)
    description = told(data)
    assert description.json["IsSigned"] is True
    assert description.json["SignatureCheck"] is False
    assert description.json["CheckCRC"] is True
    assert any(line.startswith("SignatureCheck: ") and reason in line for line in description.warnings)
    with pytest.raises(ImageRefusedError, match=reason) as caught:
        verify_image(io.BytesIO(data), Expected(), NOW)
    assert caught.value.step == step


@pytest.mark.parametrize(("year", "word"), [(2030, "expired"), (2020, "not valid before")])
def test_a_certificate_outside_of_its_time_is_told_beside_the_check(year: int, word: str) -> None:
    """SignatureCheck looks at the signature alone, the warning says the time; verify refuses at step 7."""
    description = told(SIGNED, NOW.replace(year=year))
    assert description.json["SignatureCheck"] is True
    (line,) = description.warnings
    assert word in line
    with pytest.raises(ImageRefusedError) as caught:
        verify_image(io.BytesIO(SIGNED), Expected(), NOW.replace(year=year))
    assert caught.value.step == 7


@settings(deadline=None, max_examples=30)  # each writes an image
@given(st.binary(min_size=1, max_size=8), st.integers(0, 900))
def test_a_hostile_certificate_is_no_more_than_a_false_check(noise: bytes, at: int) -> None:
    """Bytes changed inside of the certificate's DER: a description comes, whatever the parser thinks of it."""
    der = certificate_der(PEM[0])
    at %= len(der)
    bad = x509_pem(patched(der, at, noise)[: len(der)])
    description = told(resigned(lambda entry: replace(entry, certificate=bad)))
    if bad != x509_pem(der):
        assert description.json["SignatureCheck"] in (True, False)
    json.dumps(description.json)


def x509_pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


@given(st.binary(max_size=700))
def test_bytes_of_any_kind_are_no_image(data: bytes) -> None:
    """Only ImageFormatError comes out of reading, strict or not."""
    for lenient in (True, False):
        with pytest.raises(ImageFormatError):
            read_eif(io.BytesIO(data), lenient=lenient)


def test_verify_accepts_what_it_should() -> None:
    """All eight steps with certificate and registers given; an unsigned image only on request."""
    measured = verify_image(io.BytesIO(SIGNED), Expected(), NOW).measurements
    assert measured.pcr8 is not None
    registers = {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2, 8: measured.pcr8}
    verified = verify_image(io.BytesIO(SIGNED), Expected(certificate_der(PEM[0]), registers), NOW)
    assert [step[0] for step in verified.steps] == list("12345678")
    with pytest.raises(ImageRefusedError, match="not signed"):
        verify_image(io.BytesIO(UNSIGNED), Expected(), NOW)
    unsigned = verify_image(io.BytesIO(UNSIGNED), Expected(unsigned=True, registers={0: measured.pcr0}), NOW)
    assert (unsigned.certificate, [step[0] for step in unsigned.steps]) == (None, list("128"))


@pytest.mark.parametrize(
    ("data", "expected", "step"),
    [
        (SIGNED, Expected(certificate_der(OTHER[0])), 6),
        (UNSIGNED, Expected(certificate_der(PEM[0]), unsigned=True), 6),
        (SIGNED, Expected(registers={2: bytes(48)}), 8),
        (UNSIGNED, Expected(registers={8: b"\1" * 48}, unsigned=True), 8),
        (patched(SIGNED, CRC_OFFSET, b"\0\0\0\0"), Expected(), 2),
        (SIGNED[:-1], Expected(), 1),
        (b"", Expected(), 1),
    ],
)
def test_verify_stops_at_the_step_that_fails(data: bytes, expected: Expected, step: int) -> None:
    """Another signer, another register, a wrong checksum, a cut file."""
    with pytest.raises(ImageRefusedError) as caught:
        verify_image(io.BytesIO(data), expected, NOW)
    assert caught.value.step == step


def test_a_file_that_is_not_there_is_e19(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(InputError, match="none") as caught:
        describe_image(tmp_path / "none")
    assert caught.value.code == "E19"
