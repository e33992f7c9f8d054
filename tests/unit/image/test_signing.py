"""Signatures of images, against the CBOR vectors of eif.md §3.2."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from alcove.codec import cbor
from alcove.errors import ImageFormatError, UsageError
from alcove.image.boot import prepare_boot
from alcove.image.describe import describe_eif
from alcove.image.format import HEADER_SIZE
from alcove.image.measure import pcr
from alcove.image.pcr import pcr_of_certificate
from alcove.image.reader import read_eif
from alcove.image.sign import load_signer, sign_eif
from alcove.image.signature import PcrInfo, Sign1, SignatureEntry, pack_section, parse_section
from alcove.image.signing import SignatureRefusedError, Signer, verify_section

PCR_INFO = (
    "a26e72656769737465725f696e646578006e72656769737465725f76616c75659830000102030405060708090a0b0c0d0e0f1011121314151617"
    "18181819181a181b181c181d181e181f1820182118221823182418251826182718281829182a182b182c182d182e182f"
)
SECTION = (
    "81a2737369676e696e675f6365727469666963617465983b182d182d182d182d182d1842184518471849184e1820184318451852185418491846"
    "18491843184118541845182d182d182d182d182d0a184d1849184918420a182d182d182d182d182d1845184e184418201843184518521854184918"
    "4618491843184118541845182d182d182d182d182d0a697369676e61747572658a18d21884184418a1011838182218a018401840"
)
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
PCR0 = bytes(range(48))
SIGNED_AT = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
MakePem = Callable[[ec.EllipticCurve], tuple[bytes, bytes]]


def test_the_payload_is_the_specifications() -> None:
    """PCR0 of 00 01 … 2f packs to the 106 bytes of the vector, and parses back."""
    info = PcrInfo(0, PCR0)
    assert info.pack().hex() == PCR_INFO
    assert len(info.pack()) == 106
    assert PcrInfo.parse(info.pack()) == info


def test_the_section_is_the_specifications() -> None:
    """Certificate and signature are arrays of integers, 169 bytes in all."""
    entry = SignatureEntry(CERTIFICATE, bytes.fromhex("d28444a1013822a04040"))
    assert pack_section(entry).hex() == SECTION
    assert len(pack_section(entry)) == 169
    assert parse_section(bytes.fromhex(SECTION)) == entry


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_signature_is_accepted_for_its_own_image(curve: ec.EllipticCurve, make_pem: MakePem) -> None:
    """All three curves sign and verify; the raw signature has the curve's fixed width."""
    section = Signer.from_pem(*make_pem(curve)).sign(PCR0)
    entry = verify_section(section, PCR0, SIGNED_AT)
    assert len(Sign1.parse(entry.sign1).signature) == 2 * ((curve.key_size + 7) // 8)


def test_a_tagged_signature_is_read(signer: Signer) -> None:
    """COSE's tag 18 is accepted, as upstream's reader does (eif.md §3.1)."""
    entry = parse_section(signer.sign(PCR0))
    tagged = SignatureEntry(entry.certificate, b"\xd2" + entry.sign1)
    assert verify_section(pack_section(tagged), PCR0, SIGNED_AT) == tagged


def test_a_signature_over_another_image_is_refused(signer: Signer) -> None:
    """The payload must be the measured PCR0, which nitro-cli does not check (eif.md §8 trap 6)."""
    with pytest.raises(SignatureRefusedError, match="another image") as caught:
        verify_section(signer.sign(PCR0), bytes(48), SIGNED_AT)
    assert caught.value.code == "E59"


@pytest.mark.parametrize("year", [2025, 2028])
def test_a_certificate_out_of_its_time_is_refused(signer: Signer, year: int) -> None:
    """Before notBefore and after notAfter."""
    with pytest.raises(SignatureRefusedError, match="not valid at this time"):
        verify_section(signer.sign(PCR0), PCR0, dt.datetime(year, 1, 1, tzinfo=dt.UTC))


def test_a_changed_signature_is_refused(signer: Signer) -> None:
    """One bit of it, or of the payload."""
    entry = parse_section(signer.sign(PCR0))
    for index in (-1, -120):
        sign1 = bytearray(entry.sign1)
        sign1[index] ^= 1
        with pytest.raises((SignatureRefusedError, ImageFormatError)):
            verify_section(pack_section(SignatureEntry(entry.certificate, bytes(sign1))), PCR0, SIGNED_AT)


def test_a_signature_of_another_key_is_refused(signer: Signer, make_pem: MakePem) -> None:
    """The certificate that comes along must be the signer's, and the algorithm its curve's."""
    entry = parse_section(signer.sign(PCR0))
    for curve, message in ((ec.SECP384R1(), "did not make it"), (ec.SECP256R1(), "curve")):
        other = SignatureEntry(make_pem(curve)[0], entry.sign1)
        with pytest.raises(SignatureRefusedError, match=message):
            verify_section(pack_section(other), PCR0, SIGNED_AT)


def test_a_key_that_is_not_the_certificates_is_refused_before_signing(make_pem: MakePem) -> None:
    """nitro-cli would write an image that nobody accepts (eif.md §3.3)."""
    (certificate, _), (_, key) = make_pem(ec.SECP384R1()), make_pem(ec.SECP384R1())
    with pytest.raises(UsageError, match="not the signing certificate's") as caught:
        Signer.from_pem(certificate, key)
    assert caught.value.code == "E60"


@pytest.mark.parametrize("item", [[], [{}], {}, [1], [{"signing_certificate": [256], "signature": []}]])
def test_a_malformed_section_is_an_error_of_the_format(item: object) -> None:
    """An empty array too, which aborts upstream's reader (eif.md §8 trap 4)."""
    with pytest.raises(ImageFormatError):
        parse_section(cbor.encode(item))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_section_or_an_error(data: bytes) -> None:
    """Nothing but ImageFormatError comes out of the three parsers."""
    for parse in (parse_section, Sign1.parse, PcrInfo.parse):
        with contextlib.suppress(ImageFormatError):
            parse(data)


def test_signing_again_replaces_the_signature(eif: Path, tmp_path: Path, pem: tuple[bytes, bytes]) -> None:
    """sign-eif twice: one signature section, whose size the header knows, and all measurements as before."""
    (tmp_path / "c.pem").write_bytes(pem[0])
    (tmp_path / "k.pem").write_bytes(pem[1])
    before = describe_eif(eif)
    for _ in range(2):
        measured = sign_eif(eif, load_signer(tmp_path / "c.pem", str(tmp_path / "k.pem")))
    described = describe_eif(eif)
    assert (
        described["Measurements"]
        == measured.to_json()
        == before["Measurements"] | {"PCR8": pcr_of_certificate(tmp_path / "c.pem").hex()}
    )
    assert (described["CheckCRC"], described["SignatureCheck"], described["IsSigned"]) == (True, True, True)
    data = eif.read_bytes()
    parsed = read_eif(io.BytesIO(data))
    assert len(parsed.sections) == 6
    assert parsed.warnings == ()
    assert struct.unpack_from(">Q", data, 0x11C + 5 * 8) == (parsed.sections[-1].size,)


def test_describe_shows_the_certificate_as_openssl_does(eif: Path, signer: Signer) -> None:
    """Long names, English months with padded days, and upper-case hex pairs."""
    sign_eif(eif, signer)
    certificate = describe_eif(eif)["SigningCertificate"]
    assert certificate["IssuerName"] == {"commonName": "Example", "countryName": "US"}
    assert certificate["Algorithm"] == "ecdsa-with-SHA384"
    assert certificate["NotBefore"] == "Jan  1 00:00:00 2026 GMT"
    assert certificate["Signature"].startswith("30:6")


def test_a_signed_image_boots_only_with_its_own_signature(eif: Path, tmp_path: Path, signer: Signer) -> None:
    """prepare_boot gives PCR8 and the certificate, and refuses an expired one with E59."""
    sign_eif(eif, signer)
    files = prepare_boot(eif, tmp_path, at=SIGNED_AT)
    assert files.certificate == signer.certificate_der
    assert files.measurements.pcr8 == pcr(signer.certificate_der)
    with pytest.raises(SignatureRefusedError):
        prepare_boot(eif, tmp_path, at=SIGNED_AT.replace(year=2030))


def test_a_signature_over_another_image_stops_the_boot(eif: Path, tmp_path: Path, signer: Signer) -> None:
    """A valid signature beside a changed kernel, with the checksum put right: E59, whoever signed it."""
    sign_eif(eif, signer)
    eif.write_bytes(with_checksum(eif.read_bytes().replace(b"kernel", b"Kernel")))
    with pytest.raises(SignatureRefusedError) as caught:
        prepare_boot(eif, tmp_path, at=SIGNED_AT)
    assert caught.value.code == "E59"


def with_checksum(image: bytes) -> bytes:
    """The image with the checksum of what it is now (eif.md §1)."""
    crc = zlib.crc32(image[: HEADER_SIZE - 4] + image[HEADER_SIZE:])
    return image[: HEADER_SIZE - 4] + struct.pack(">I", crc) + image[HEADER_SIZE:]
