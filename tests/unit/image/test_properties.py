"""Properties of images as a whole: what is written is read and measured, however it is cut, and no bit escapes."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import tempfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from alcove.codec import cpio
from alcove.codec.cpio_reader import CpioReader, Data, Member
from alcove.errors import ImageFormatError
from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.contents import ItemReader
from alcove.image.describe import describe
from alcove.image.format import SectionHeader, SectionType
from alcove.image.metadata import ImageMetadata, parse_metadata
from alcove.image.reader import measure_eif, read_eif, read_section

AT = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
Sections = list[tuple[SectionType, bytes]]
HEAD = (SectionType.KERNEL, SectionType.CMDLINE, SectionType.METADATA)
MEASURED = {SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK}

datas = st.binary(max_size=200)
images = st.builds(
    lambda head, ramdisks: [*zip(HEAD, head, strict=True), *((SectionType.RAMDISK, data) for data in ramdisks)],
    st.tuples(datas, datas, datas),
    st.lists(datas, max_size=4),
)
cuts = st.lists(st.integers(0, 700), max_size=5)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, json_values, max_size=4)
numbers = st.integers(0, cpio.MAX_FIELD)
names = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name and name != b"TRAILER!!!")


@st.composite
def cpio_entries(draw: st.DrawFn) -> tuple[cpio.Entry, bytes]:
    """An entry of any type, with its content."""
    kind = draw(st.sampled_from([0o100000, 0o120000, 0o040000, 0o020000, 0o060000, 0o010000]))
    content = draw(st.binary(max_size=600)) if kind in (0o100000, 0o120000) else b""
    mode, owner = kind | draw(st.integers(0, 0o7777)), (draw(numbers), draw(numbers), draw(numbers))
    rdev = (draw(numbers), draw(numbers))
    return cpio.Entry(draw(names), mode, *owner, len(content), rdev, partial(iter, (content,))), content


def pieces(data: bytes, places: list[int]) -> Iterator[bytes]:
    """The data, cut at these places."""
    ends = [*sorted(min(place, len(data)) for place in places), len(data)]
    yield from (data[start:end] for start, end in zip([0, *ends], ends, strict=False))


def written(sections: Sections, places: list[int]) -> tuple[bytes, list[bytes]]:
    """An image of these sections, each written in pieces, and the registers that the writer measured."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x.eif")
        new = [NewSection(kind, tuple(pieces(data, places))) for kind, data in sections]
        measured = write_eif(path, NewHeader(0), new).measurements()
        return path.read_bytes(), [measured.pcr0, measured.pcr1, measured.pcr2]


def measured_from(data: bytes) -> tuple[list[bytes], int]:
    """The registers and the checksum that the reader measures."""
    file = io.BytesIO(data)
    measurer, crc = measure_eif(file, read_eif(file))
    measured = measurer.measurements()
    return [measured.pcr0, measured.pcr1, measured.pcr2], crc


def hashed(sections: Sections) -> list[bytes]:
    """PCR0, PCR1 and PCR2 in one go from what the specification says they measure (eif.md §2)."""
    head = b"".join(data for kind, data in sections if kind in (SectionType.KERNEL, SectionType.CMDLINE))
    ramdisks = [data for kind, data in sections if kind is SectionType.RAMDISK]
    contents = (head + b"".join(ramdisks), head + b"".join(ramdisks[:1]), b"".join(ramdisks[1:]))
    return [hashlib.sha384(bytes(48) + hashlib.sha384(content).digest()).digest() for content in contents]


@settings(max_examples=50)  # each writes files
@given(images, cuts)
def test_what_is_written_is_read_and_measured(sections: Sections, places: list[int]) -> None:
    """Sections come back as they went in; writer, reader and plain hashing agree, however the data was cut."""
    data, measured = written(sections, places)
    file = io.BytesIO(data)
    eif = read_eif(file)
    assert [(section.type, read_section(file, section)) for section in eif.sections] == sections
    assert measured == hashed(sections)
    assert measured_from(data) == (measured, zlib.crc32(data[:544] + data[548:]))
    assert eif.header.eif_crc32 == zlib.crc32(data[:544] + data[548:])


@settings(max_examples=50)  # each writes files
@given(images, cuts, cuts)
def test_chunks_never_change_an_image(sections: Sections, one: list[int], other: list[int]) -> None:
    """The file does not tell in what pieces its sections came."""
    assert written(sections, one) == written(sections, other)


@settings(max_examples=50)  # each writes files
@given(images, st.data())
def test_a_flipped_bit_of_a_measured_section_changes_pcr0(sections: Sections, draw: st.DataObject) -> None:
    """Every bit of kernel, command line and ramdisks counts; and the checksum notices every bit of the body."""
    data, (pcr0, *_) = written(sections, [])
    spots = [
        (section.type, at)
        for section in read_eif(io.BytesIO(data)).sections
        for at in range(section.data_offset, section.end)
    ]
    if not spots:
        return
    kind, place = draw.draw(st.sampled_from(spots))
    changed = bytearray(data)
    changed[place] ^= 1 << draw.draw(st.integers(0, 7))
    (after, *_), crc = measured_from(bytes(changed))
    assert (after != pcr0) == (kind in MEASURED)
    assert crc != int.from_bytes(data[544:548])


def test_no_byte_of_an_image_can_change_unnoticed(eif: Path) -> None:
    """Whichever byte has a bit flipped: the image cannot be read, with the field named, or CheckCRC is false."""
    data = eif.read_bytes()
    refused = 0
    for place in range(len(data)):
        file = io.BytesIO(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        try:
            description = describe(file, read_eif(file, lenient=True), AT)
        except ImageFormatError as error:
            refused += bool(error.field)
        else:
            assert description.json["CheckCRC"] is False, place
            refused += any(warning.startswith("CheckCRC: ") for warning in description.warnings)
    assert refused == len(data)


@given(st.sampled_from(SectionType), st.integers(0, (1 << 64) - 1), st.integers(0, 65535))
def test_section_headers_round_trip(kind: SectionType, size: int, flags: int) -> None:
    """Pack and parse are inverse."""
    assert SectionHeader.parse(SectionHeader(kind, size, flags).pack(), 0) == SectionHeader(kind, size, flags)


@given(texts, texts, objects, json_values, st.none() | objects)
def test_metadata_round_trips(name: str, version: str, build: dict[str, object], info: object, custom: object) -> None:
    """Whatever JSON there is comes back, key order included."""
    metadata = ImageMetadata(name, version, build, info, custom)  # type: ignore[arg-type]
    read = parse_metadata(metadata.pack())
    assert read == metadata
    assert read.pack() == metadata.pack()


@given(st.lists(cpio_entries(), max_size=6), cuts)
def test_archives_round_trip(members: list[tuple[cpio.Entry, bytes]], places: list[int]) -> None:
    """Every entry that the writer takes comes back with its content, in whatever pieces the archive comes."""
    archive = b"".join(cpio.archive(entry for entry, _ in members))
    assert len(archive) == cpio.archive_size(entry for entry, _ in members)
    found: list[tuple[Member, bytes]] = []
    reader = CpioReader()
    for piece in pieces(archive, places):
        for event in reader.receive(piece):
            if isinstance(event, Member):
                found.append((event, b""))
            elif isinstance(event, Data):
                found[-1] = (found[-1][0], found[-1][1] + event.chunk)
    reader.close()
    assert [(m.name, m.mode, m.uid, m.gid, m.mtime, m.rdev, data) for m, data in found] == [
        (e.name, e.mode, e.uid, e.gid, e.mtime, e.rdev, data) for e, data in members
    ]
    assert [m.inode for m, _ in found] == list(range(721, 721 + len(found)))


@given(st.binary(max_size=400), cuts, st.booleans())
def test_any_bytes_are_a_ramdisk_or_an_error(data: bytes, places: list[int], compressed: bool) -> None:
    """A ramdisk gives members or ImageFormatError, whole and in pieces alike, compressed too."""
    ramdisk = data
    if compressed:
        deflate = zlib.compressobj(wbits=31)
        ramdisk = deflate.compress(b"".join(cpio.archive([cpio.file(b"f", data)])) + data) + deflate.flush()
    assert _items(ramdisk, []) == _items(ramdisk, places)


def _items(ramdisk: bytes, places: list[int]) -> list[object]:
    reader = ItemReader()
    found: list[object] = []
    try:
        for piece in pieces(ramdisk, places):
            found += reader.receive(piece)
        reader.close()
    except ImageFormatError as error:
        return [*found, error.message]
    return found
