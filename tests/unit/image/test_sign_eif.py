"""`sign-eif` on images of others, and its failures: the old file stays until the new one is whole."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.image.archives import METADATA, archive, write
from tests.unit.image.test_describe import mended, patched, with_gap

from alcove.errors import AlcoveError, ImageFormatError, UsageError
from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.describe import describe_image
from alcove.image.format import HEADER_SIZE, EifHeader, SectionType
from alcove.image.reader import measure_eif, read_eif
from alcove.image.sign import load_signer, sign_eif
from alcove.image.signing import Signer

MakePem = Callable[[ec.EllipticCurve], tuple[bytes, bytes]]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def stale(data: bytes, *, mend: bool) -> bytes:
    """The size of the signature section wrong in the header's array, as nitro-cli leaves it."""
    header = EifHeader.parse(data)
    last = header.num_sections - 1
    sizes = (*header.section_sizes[:last], header.section_sizes[last] + 9, *header.section_sizes[last + 1 :])
    changed = replace(header, section_sizes=sizes).pack() + data[HEADER_SIZE:]
    return mended(changed) if mend else changed


@pytest.mark.parametrize("mend", [True, False], ids=["checksum made anew", "checksum of the right table"])
def test_a_stale_size_is_mended(tmp_path: Path, signer: Signer, mend: bool) -> None:
    """An image that nitro-cli signed again is signed once more, with a right table, and the warning is given on."""
    path = write(tmp_path / "a.eif")
    sign_eif(path, signer)
    signed = path.read_bytes()
    path.write_bytes(stale(signed, mend=mend))
    warnings: list[str] = []
    sign_eif(path, signer, warnings.append)
    assert "nitro-cli writes this" in warnings[0]
    with path.open("rb") as file:
        assert read_eif(file).findings == ()
    assert path.read_bytes() == signed


def test_a_gap_is_closed_and_flags_are_kept(tmp_path: Path, signer: Signer) -> None:
    """The new image has no gap, and the flag bits that the format does not know are as they were."""
    path = write(tmp_path / "a.eif", flags=0x0240)
    path.write_bytes(with_gap(path.read_bytes()))
    with path.open("rb") as file:
        eif = read_eif(file, lenient=True)
    header = EifHeader.parse(path.read_bytes())
    assert len(eif.warnings) == 2
    crc = crc_of(path)
    path.write_bytes(replace(header, eif_crc32=crc).pack() + path.read_bytes()[HEADER_SIZE:])
    sign_eif(path, signer)
    with path.open("rb") as file:
        new = read_eif(file)
    assert new.header.flags == 0x0240
    assert describe_image(path).json["SignatureCheck"] is True


def crc_of(path: Path) -> int:
    with path.open("rb") as file:
        return measure_eif(file, read_eif(file, lenient=True))[1]


def test_a_signature_in_the_middle_is_replaced_in_its_place(tmp_path: Path, signer: Signer) -> None:
    """The order of the sections stays (eif.md §3.3)."""
    path = tmp_path / "a.eif"
    sections = [
        NewSection(SectionType.KERNEL, (b"kernel",)),
        NewSection(SectionType.CMDLINE, (b"cmdline",)),
        NewSection(SectionType.SIGNATURE, (b"old",)),
        NewSection(SectionType.RAMDISK, (b"ramdisk",)),
        NewSection(SectionType.METADATA, (METADATA.pack(),)),
    ]
    write_eif(path, NewHeader(0), sections)
    sign_eif(path, signer)
    with path.open("rb") as file:
        assert [part.type for part in read_eif(file).sections] == [section.type for section in sections]
    assert describe_image(path).json["SignatureCheck"] is True


def test_permissions_and_links_stay(tmp_path: Path, signer: Signer) -> None:
    """A private image stays private, and a symlink stays one."""
    path, link = write(tmp_path / "a.eif"), tmp_path / "link.eif"
    path.chmod(0o600)
    link.symlink_to("a.eif")
    sign_eif(link, signer)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    assert describe_image(path).json["IsSigned"] is True


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[:300],
        lambda data: patched(data, len(data) - 1, b"\xff"),
        lambda data: mended(patched(data, 4, b"\0\2")),
        lambda data: mended(patched(data, 4, b"\0\5")),
        lambda _: b"",
    ],
    ids=["cut", "header cut", "damaged", "version 2", "version 5", "empty"],
)
def test_an_image_that_cannot_be_signed_stays(tmp_path: Path, signer: Signer, spoil: Callable[[bytes], bytes]) -> None:
    """Malformed, damaged or too old: an error, the same bytes, and nothing beside them."""
    path = write(tmp_path / "a.eif")
    path.write_bytes(spoil(path.read_bytes()))
    before = files(tmp_path)
    with pytest.raises((ImageFormatError, UsageError)):
        sign_eif(path, signer)
    assert files(tmp_path) == before


def test_an_image_without_room_for_a_section_stays(tmp_path: Path, signer: Signer) -> None:
    """32 sections are the most."""
    path = write(tmp_path / "a.eif", *[b"ramdisk"] * 29)
    before = files(tmp_path)
    with pytest.raises(ImageFormatError, match="more than 32"):
        sign_eif(path, signer)
    assert files(tmp_path) == before


def test_a_certificate_that_is_too_long_is_refused(tmp_path: Path, pem: tuple[bytes, bytes]) -> None:
    """A chain of certificates does not fit into 32768 bytes of section; the image stays."""
    path = write(tmp_path / "a.eif")
    before = files(tmp_path)
    with pytest.raises(ImageFormatError, match="32768") as caught:
        sign_eif(path, Signer.from_pem(pem[0] * 40, pem[1]))
    assert caught.value.code == "E60"
    assert files(tmp_path) == before


def test_a_key_of_another_certificate_is_refused_before_the_image_is_touched(tmp_path: Path, make_pem: MakePem) -> None:
    """Another key on the same curve, and a key on another curve: E60."""
    certificate, _ = make_pem(ec.SECP384R1())
    (tmp_path / "cert.pem").write_bytes(certificate)
    for curve in (ec.SECP384R1(), ec.SECP256R1()):
        (tmp_path / "key.pem").write_bytes(make_pem(curve)[1])
        with pytest.raises(AlcoveError) as caught:
            load_signer(tmp_path / "cert.pem", str(tmp_path / "key.pem"))
        assert caught.value.code == "E60"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, pem: tuple[bytes, bytes]) -> None:
    """The program stops with E19 when no more can be written, and the image is the one it was."""
    path = write(tmp_path / "a.eif", b"boot", archive() + os.urandom(1 << 18))
    (tmp_path / "cert.pem").write_bytes(pem[0])
    (tmp_path / "key.pem").write_bytes(pem[1])
    before = files(tmp_path)
    done = subprocess.run(
        [
            Path(sys.executable).parent / "nitro-cli", "sign-eif", "--eif-path", path,
            "--signing-certificate", tmp_path / "cert.pem", "--private-key", tmp_path / "key.pem",
        ],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17)),
    )  # fmt: skip
    assert done.returncode == 19
    assert done.stderr.startswith("[ E19 ] ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert files(tmp_path) == before
