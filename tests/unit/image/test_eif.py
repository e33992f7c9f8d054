"""Writing, reading and measuring images, against the vector of eif.md §5."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.errors import ImageFormatError, InputError
from alcove.image.builder import NewHeader, NewSection, umask, write_eif
from alcove.image.format import HEADER_SIZE, SECTION_HEADER_SIZE, EifHeader, SectionType
from alcove.image.measure import Measurer, crc32_joined, pcr
from alcove.image.reader import measure_eif, read_eif, read_section

PCR0 = "9476662f525a28aa994c65883117bdacb3a0911961b455e0db6c85ff33269432fff9368094f6a413095e29bada04472e"
PCR1 = "bb597e78cae555537aea0843f40c48b9a510188880a82351eac8c7930825ac391554907e4354f431f36fbc82416d18b4"
PCR2 = "361b4f176971a5893fc98afbed75853fdc33c130370ca7cf9fa27578446d3708611d899a2703095c7335733c0d099d46"
EMPTY_PCR2 = "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a"
KERNEL = NewSection(SectionType.KERNEL, (b"kernel",))
CMDLINE = NewSection(SectionType.CMDLINE, (b"cmdline",))
METADATA = NewSection(SectionType.METADATA, (b"{}",))
RAMDISKS = [NewSection(SectionType.RAMDISK, (data,)) for data in (b"ramdisk0", b"ramdisk1")]
SIGNATURE = NewSection(SectionType.SIGNATURE, (b"signature",))
VECTOR = [KERNEL, CMDLINE, METADATA, *RAMDISKS]


def write(path: Path, sections: list[NewSection], header: NewHeader | None = None) -> bytes:
    write_eif(path, header or NewHeader(0), sections)
    return path.read_bytes()


with tempfile.TemporaryDirectory() as scratch:
    SIGNED = write(Path(scratch) / "signed.eif", [*VECTOR, SIGNATURE])


@pytest.fixture
def vector(tmp_path: Path) -> bytes:
    """The image of eif.md §5."""
    return write(tmp_path / "vector.eif", VECTOR)


def read(data: bytes, *, lenient: bool = False) -> None:
    read_eif(io.BytesIO(data), lenient=lenient)


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def test_the_layout_is_that_of_the_specification() -> None:
    """The header has 548 bytes and a section header 12."""
    assert (HEADER_SIZE, SECTION_HEADER_SIZE) == (548, 12)


def test_the_writer_reproduces_the_vector(vector: bytes) -> None:
    """Layout and checksum are those of eif.md §5, down to the hash of the file."""
    assert len(vector) == 639
    assert hashlib.sha256(vector).hexdigest() == "3ebc153815324142d71199eb15db5d38681c4a1a44c3bf2ed65c2d45e878bbaa"


def test_the_writer_measures_what_it_writes(tmp_path: Path) -> None:
    """The registers that the writer returns are those of eif.md §5."""
    measured = write_eif(tmp_path / "x.eif", NewHeader(0), VECTOR).measurements()
    assert (measured.pcr0.hex(), measured.pcr1.hex(), measured.pcr2.hex()) == (PCR0, PCR1, PCR2)


def test_the_reader_measures_the_same(vector: bytes) -> None:
    """Registers and checksum, measured from the file, agree with the writer and the header."""
    file = io.BytesIO(vector)
    eif = read_eif(file)
    measurer, crc = measure_eif(file, eif)
    assert measurer.measurements().pcr0.hex() == PCR0
    assert crc == eif.header.eif_crc32 == 0x5A283339
    assert read_section(file, eif.find(SectionType.CMDLINE)) == b"cmdline"


def test_pcr2_of_an_image_with_one_ramdisk_measures_nothing() -> None:
    """Without an application ramdisk PCR2 is that of the empty string (eif.md §2)."""
    assert Measurer().measurements().pcr2.hex() == EMPTY_PCR2 == pcr(b"").hex()


def test_every_truncation_is_refused(vector: bytes) -> None:
    """An image cut off anywhere is an error of its format."""
    for length in range(len(vector)):
        with pytest.raises(ImageFormatError):
            read(vector[:length])


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b".elf", "magic"),
        (4, b"\0\1", "version"),
        (4, b"\0\5", "version"),
        (0x1A, b"\0\1", "num_sections"),
        (0x1A, b"\0\x21", "num_sections"),
        (0x1A, b"\0\4", "follow the last section"),
        (0x1A, b"\0\6", "overlaps"),
        (0x1C, struct.pack(">Q", 547), "overlaps"),
        (0x1C, struct.pack(">Q", 549), "gap of 1"),
        (0x1C, struct.pack(">Q", (1 << 64) - 1), "gap"),
        (0x1C + 8, struct.pack(">Q", 548), "overlaps"),
        (0x11C, struct.pack(">Q", 7), "section_sizes"),
        (0x11C, struct.pack(">Q", (1 << 64) - 1), "outside"),
        (548, b"\0\0", "section_type"),
        (548, b"\0\6", "section_type"),
        (552, struct.pack(">Q", 1 << 63), "past the end"),
        (548, b"\0\2", "kernel"),
        (566, b"\0\1", "2 kernel"),
        (585, b"\0\2", "cmdline"),
        (585, b"\0\3", "metadata"),
        (599, b"\0\5", "more than one metadata"),
    ],
)
def test_one_wrong_field_is_refused_by_name(vector: bytes, offset: int, value: bytes, message: str) -> None:
    """Each rule of the format is held, and the error says which."""
    with pytest.raises(ImageFormatError, match=message):
        read(patched(vector, offset, value))


def test_bytes_after_the_last_section_are_refused(vector: bytes) -> None:
    """A trailing byte is an error, unless the reader is lenient."""
    with pytest.raises(ImageFormatError, match="1 bytes follow"):
        read(vector + b"x")
    read(vector + b"x", lenient=True)


def test_a_gap_is_refused_unless_lenient(vector: bytes) -> None:
    """Bytes between header and sections boot on the platform; only the lenient reader takes them (eif.md §6)."""
    shifted = vector[:548] + bytes(4) + vector[548:]
    for index in range(5):
        (offset,) = struct.unpack_from(">Q", vector, 0x1C + 8 * index)
        shifted = patched(shifted, 0x1C + 8 * index, struct.pack(">Q", offset + 4))
    with pytest.raises(ImageFormatError, match="gap of 4"):
        read(shifted)
    read(shifted, lenient=True)


@pytest.mark.parametrize("offset", [640, 1 << 40, (1 << 64) - 1])
def test_an_offset_outside_the_file_is_refused(vector: bytes, offset: int) -> None:
    """The lenient reader too stays within the file."""
    with pytest.raises(ImageFormatError, match="outside"):
        read(patched(vector, 0x1C, struct.pack(">Q", offset)), lenient=True)


def test_a_ramdisk_before_the_kernel_is_refused(tmp_path: Path) -> None:
    """The order is free but for this (eif.md §1.2)."""
    with pytest.raises(ImageFormatError, match="before the kernel"):
        read(write(tmp_path / "x.eif", [RAMDISKS[0], KERNEL, CMDLINE, METADATA]))


def test_a_command_line_before_the_kernel_is_measured_in_file_order(tmp_path: Path) -> None:
    """The order of the file counts (eif.md §2)."""
    path = tmp_path / "x.eif"
    write(path, [CMDLINE, KERNEL, METADATA, RAMDISKS[0]])
    with path.open("rb") as file:
        measurer, _ = measure_eif(file, read_eif(file))
    assert measurer.measurements().pcr1 == pcr(b"cmdlinekernelramdisk0")


def test_a_signature_size_that_nitro_cli_forgot_is_tolerated(tmp_path: Path) -> None:
    """Signing again leaves the array's entry stale (eif.md §8 trap 1): a warning, not an error."""
    data = write(tmp_path / "x.eif", [*VECTOR, SIGNATURE])
    eif = read_eif(io.BytesIO(patched(data, 0x11C + 5 * 8, struct.pack(">Q", 5))))
    assert len(eif.warnings) == 1
    assert eif.sections[-1].size == len(b"signature")


@pytest.mark.parametrize(
    ("sections", "version", "message"),
    [
        ([KERNEL, CMDLINE, RAMDISKS[0]], 4, "no metadata"),
        ([KERNEL, CMDLINE, RAMDISKS[0], SIGNATURE], 2, "version 2 does not have"),
        ([*VECTOR, NewSection(SectionType.SIGNATURE, (bytes(32769),))], 4, "too many"),
        ([*VECTOR, SIGNATURE, SIGNATURE], 4, "more than one signature"),
    ],
)
def test_sections_must_fit_the_version(tmp_path: Path, sections: list[NewSection], version: int, message: str) -> None:
    """Metadata from version 4, signatures from version 3 and of 32768 bytes at most."""
    with pytest.raises(ImageFormatError, match=message):
        read(write(tmp_path / "x.eif", sections, NewHeader(0, version)))


def test_old_versions_and_unknown_flags_are_read(tmp_path: Path) -> None:
    """A version 2 image without metadata is sound, and flag bits are kept (eif.md §1.5)."""
    data = write(tmp_path / "x.eif", [KERNEL, CMDLINE, RAMDISKS[0]], NewHeader(0x0241, 2))
    header = read_eif(io.BytesIO(data)).header
    assert (header.version, header.flags, header.architecture) == (2, 0x0241, "aarch64")


@given(st.binary(max_size=1200))
def test_any_bytes_are_an_image_or_an_error_of_the_format(data: bytes) -> None:
    """Nothing but ImageFormatError comes out of the reader."""
    with contextlib.suppress(ImageFormatError):
        read(data)


@given(st.data())
def test_any_change_of_a_sound_image_is_read_or_refused(data: st.DataObject) -> None:
    """Mutations near the truth: parsed, or ImageFormatError; what parses packs to the same header."""
    image = bytearray(SIGNED)
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    try:
        eif = read_eif(io.BytesIO(bytes(image)))
    except ImageFormatError:
        return
    assert eif.header.pack() == image[:HEADER_SIZE]


@given(st.binary(max_size=64), st.binary(max_size=3000))
def test_joined_checksums_are_the_checksum_of_the_whole(first: bytes, second: bytes) -> None:
    """CRC-32 of two pieces comes from the CRC-32 of each."""
    assert crc32_joined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@given(
    st.integers(0, 65535), st.integers(2, 4), st.integers(2, 32), st.lists(st.integers(0, (1 << 64) - 1), max_size=32)
)
def test_headers_round_trip(flags: int, version: int, count: int, numbers: list[int]) -> None:
    """Pack and parse are inverse."""
    array = (*numbers, *[0] * (32 - len(numbers)))
    header = EifHeader(flags, count, array, array[::-1], 7, version, 1, 2, 3, 4)
    assert EifHeader.parse(header.pack()) == header


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """The output is the old image or the whole new one; nothing else stays in the directory."""
    path = tmp_path / "x.eif"
    path.write_bytes(b"old")

    def broken() -> object:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_eif(path, NewHeader(0), [KERNEL, NewSection(SectionType.RAMDISK, broken())])  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_cannot_be_written_is_e19(tmp_path: Path) -> None:
    """A missing directory is an error with AWS's code."""
    with pytest.raises(InputError, match="cannot write") as caught:
        write_eif(tmp_path / "no" / "x.eif", NewHeader(0), VECTOR)
    assert caught.value.code == "E19"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_a_new_image_has_the_permissions_of_new_files(tmp_path: Path, mask: int) -> None:
    """Those that umask leaves."""
    before = os.umask(mask)
    try:
        write(tmp_path / "new.eif", VECTOR)
        assert umask() == mask
    finally:
        assert os.umask(before) == mask
    assert (tmp_path / "new.eif").stat().st_mode & 0o777 == 0o666 & ~mask
