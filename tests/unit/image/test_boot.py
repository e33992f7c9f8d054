"""Images checked before they boot, and described however broken they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from alcove.errors import ImageFormatError, InputError
from alcove.image.boot import prepare_boot
from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.describe import describe_eif
from alcove.image.format import SectionType
from alcove.image.measure import pcr
from alcove.image.pcr import pcr_of_certificate, pcr_of_file


def test_kernel_and_initrd_are_what_was_measured(eif: Path, tmp_path: Path) -> None:
    """The ramdisks follow each other in the initrd; metadata and size come along."""
    files = prepare_boot(eif, tmp_path)
    assert files.kernel.read_bytes() == b"kernel"
    assert files.initrd.read_bytes() == b"ramdisk0ramdisk1"
    assert files.measurements.pcr0 == pcr(b"kernelcmdlineramdisk0ramdisk1")
    assert (files.image_name, files.metadata["Team"], files.certificate) == ("app", "blue", None)
    assert files.size == eif.stat().st_size


def test_a_changed_image_is_described_and_does_not_boot(eif: Path, tmp_path: Path) -> None:
    """A wrong checksum is told by describe-eif and is E35 at boot (eif.md §6)."""
    data = bytearray(eif.read_bytes())
    data[-1] ^= 1
    eif.write_bytes(data)
    assert describe_eif(eif)["CheckCRC"] is False
    with pytest.raises(ImageFormatError, match="checksum") as caught:
        prepare_boot(eif, tmp_path)
    assert caught.value.code == "E35"


def test_an_image_of_another_architecture_does_not_boot(eif: Path, tmp_path: Path) -> None:
    """Bit 0 of the flags must be the machine's."""
    with pytest.raises(ImageFormatError, match="x86_64"):
        prepare_boot(eif, tmp_path, architecture="aarch64")


@pytest.mark.parametrize(
    ("cmdline", "ramdisks", "metadata", "message"),
    [
        (b"ok", 0, b"null", "no ramdisk"),
        (b"a\0b", 1, b"", "NUL"),
        (b"\xff", 1, b"", "UTF-8"),
        (b"ok", 1, b"{}", "ImageName is missing"),
        (b"ok", 1, b"[" * 100000, "not JSON"),
    ],
)
def test_what_cannot_boot_is_refused(
    tmp_path: Path, cmdline: bytes, ramdisks: int, metadata: bytes, message: str
) -> None:
    """No ramdisk, a command line that is no text, or metadata that cannot be read."""
    sections = [NewSection(SectionType.KERNEL, (b"k",)), NewSection(SectionType.CMDLINE, (cmdline,))]
    sections += [NewSection(SectionType.METADATA, (metadata,))] if metadata else []
    sections += [NewSection(SectionType.RAMDISK, (b"r",))] * ramdisks
    write_eif(tmp_path / "x.eif", NewHeader(0, version=4 if metadata else 3), sections)
    with pytest.raises(ImageFormatError, match=message):
        prepare_boot(tmp_path / "x.eif", tmp_path)


def test_a_missing_image_is_e19(tmp_path: Path) -> None:
    """For boot and for describe."""
    for use in (lambda path: prepare_boot(path, tmp_path), describe_eif):
        with pytest.raises(InputError) as caught:
            use(tmp_path / "missing.eif")
        assert caught.value.code == "E19"


def test_a_damaged_signature_is_described(eif: Path, tmp_path: Path) -> None:
    """IsSigned without a certificate, and a check that fails."""
    sections = [NewSection(kind, (data,)) for kind, data in ((SectionType.KERNEL, b"k"), (SectionType.CMDLINE, b"c"))]
    sections += [NewSection(SectionType.RAMDISK, (b"r",)), NewSection(SectionType.SIGNATURE, (b"\x80",))]
    write_eif(eif, NewHeader(0, version=3), sections)
    described = describe_eif(eif)
    assert (described["IsSigned"], described["SignatureCheck"]) == (True, False)
    assert "SigningCertificate" not in described
    with pytest.raises(ImageFormatError, match="no signature"):
        prepare_boot(eif, tmp_path)


def test_pcr_of_a_file_and_of_something_that_is_no_certificate(tmp_path: Path) -> None:
    """--input measures any file; --signing-certificate wants PEM (E57)."""
    (tmp_path / "x").write_bytes(b"content")
    assert pcr_of_file(tmp_path / "x") == pcr(b"content")
    with pytest.raises(InputError) as caught:
        pcr_of_certificate(tmp_path / "x")
    assert caught.value.code == "E57"
