"""Fuzz targets of the image room: any bytes are parsed, or refused with the room's own errors, and nothing else.

Each function takes a fuzzer's bytes. What it asserts beside that is in its first line.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from tests.conformance.corpus import layout
from tests.unit.image.tarballs import gzip_member
from vectors.vectorfile import Vector

from alcove.codec import cpio
from alcove.codec.cpio_reader import CpioReader, Data, Event, Member
from alcove.errors import AlcoveError, ImageFormatError, InputError, UsageError
from alcove.image.boot import prepare_boot
from alcove.image.contents import ItemReader, item_json
from alcove.image.describe import describe
from alcove.image.diff import Side, diff
from alcove.image.explain import explain
from alcove.image.format import HEADER_SIZE
from alcove.image.metadata import parse_custom, parse_metadata
from alcove.image.ramdisk import add_init_layer, application_entries
from alcove.image.reader import Eif, read_eif
from alcove.image.rootfs import rootfs_tar
from alcove.image.signature import pack_section, parse_section
from alcove.image.signing import verify_section
from alcove.image.sources import oci
from alcove.image.sources.tar import Kind, members
from alcove.image.sources.tree import walk
from alcove.image.sources.unpack import BrokenError, gunzipped

AT = datetime(2026, 6, 1, tzinfo=UTC)
LIMIT = 1 << 22  # bytes that compressed parts may unpack to
OTHER = Path(__file__).parent.parent.parent / "vectors" / "eif" / "image" / "signed-p384.txt"


def eif(data: bytes) -> None:
    """Describe and explain whatever is read; what the strict reader takes the lenient takes alike, within the file."""
    file = io.BytesIO(data)
    strict = _read(file, lenient=False)
    lenient = _read(file, lenient=True)
    if lenient is None:
        assert strict is None
        return
    assert strict is None or strict == lenient
    assert lenient.header.pack() == data[:HEADER_SIZE]
    assert all(HEADER_SIZE <= section.offset < section.end <= len(data) for section in lenient.sections)
    _shown(describe(file, lenient, AT).json)
    for line in explain(file, lenient, LIMIT):
        line.text().encode()
        _shown(line.to_json())


def _read(file: io.BytesIO, *, lenient: bool) -> Eif | None:
    try:
        return read_eif(file, lenient=lenient)
    except ImageFormatError:
        return None


def _shown(item: object) -> None:
    """What a command prints must be JSON that UTF-8 can hold."""
    json.dumps(item, indent=2, allow_nan=False).encode()
    json.dumps(item, ensure_ascii=False).encode()


def eif_diff(data: bytes) -> None:
    """Any image that can be read can be compared with another, both ways, and with itself without a difference."""
    file = io.BytesIO(data)
    try:
        one = Side.read(file)
    except ImageFormatError:
        return
    other = _other()
    for a, b in ((one, other), (other, one)):
        with contextlib.suppress(ImageFormatError):  # a ramdisk with too many members
            for difference in diff(a, b, LIMIT):
                difference.what.encode()
                _shown(difference.to_json())
    assert not list(diff(one, one, LIMIT))


@cache
def _other() -> Side:
    return Side.read(io.BytesIO(Vector.parse("other", OTHER.read_text()).payload))


def boot(data: bytes) -> None:
    """With its checksum put right, an image boots or is refused; a kernel is written whole."""
    if len(data) >= HEADER_SIZE:
        crc = zlib.crc32(data[: HEADER_SIZE - 4] + data[HEADER_SIZE:])
        data = data[: HEADER_SIZE - 4] + struct.pack(">I", crc) + data[HEADER_SIZE:]
    with tempfile.TemporaryDirectory(prefix="alcove-fuzz-") as name:
        image = Path(name, "x.eif")
        image.write_bytes(data)
        try:
            files = prepare_boot(image, Path(name), at=AT)
        except AlcoveError as error:
            assert error.code in {"E35", "E59"}  # noqa: PT017  # this is no test of pytest's
            return
        size = files.kernel.stat().st_size + files.initrd.stat().st_size
        assert size <= len(data) - HEADER_SIZE
        assert files.cmdline.encode() in data
        _shown(files.metadata)


def signature(data: bytes) -> None:
    """A section is accepted, refused or malformed; what was parsed packs to what parses to the same."""
    with contextlib.suppress(InputError):
        verify_section(data, bytes.fromhex("22" * 48), AT)
    try:
        entry = parse_section(data)
    except ImageFormatError:
        return
    packed = pack_section(entry)
    assert len(packed) > 32768 or parse_section(packed) == entry


def metadata(data: bytes) -> None:
    """Metadata and --metadata files are read or refused; what was read can be shown, and packs to the same."""
    with contextlib.suppress(UsageError):
        _shown(parse_custom(data))
    try:
        read = parse_metadata(data, lenient=True)
    except ImageFormatError:
        return
    _shown(read.describe())
    assert parse_metadata(read.pack()) == read


def ramdisk(data: bytes) -> None:
    """An archive gives the same members, or the same fault, in one piece and in pieces; compressed ones are bounded."""
    whole, pieces = _outcome(data, len(data) or 1), _outcome(data, 1 + len(data) % 61)
    assert whole == pieces
    reader = ItemReader(LIMIT)
    with contextlib.suppress(ImageFormatError):
        for item in reader.receive(data):
            _shown(item_json(item))
        reader.close()


def _outcome(data: bytes, step: int) -> list[object]:
    """The members with their data; with the error at the end, where one came, and without the data before it."""
    found: list[object] = []
    try:
        for event in _events(data, step):
            if isinstance(event, Data) and isinstance(found[-1], bytes):
                found[-1] += event.chunk
            else:
                found.append(event.chunk if isinstance(event, Data) else event)
    except ImageFormatError as error:
        return [*(event for event in found if not isinstance(event, bytes)), error.message]
    return found


def _events(data: bytes, step: int) -> Iterator[Event]:
    reader = CpioReader()
    for at in range(0, len(data), step):
        yield from reader.receive(data[at : at + step])
    reader.close()


def rootfs(data: bytes) -> None:
    """What a ramdisk unpacks to is a tar that stays below its root, goes through no link and links to what is there."""
    try:
        content = b"".join(rootfs_tar(lambda: _events(data, 1 << 12)))
    except ImageFormatError:
        return
    kinds: dict[bytes, Kind] = {}
    for member in members(io.BytesIO(content), len(content)):
        name = member.name.removesuffix(b"/")
        parts = name.split(b"/")
        assert name not in kinds
        assert not {b"", b".", b".."} & set(parts) or not name
        above = (b"/".join(parts[:depth]) for depth in range(1, len(parts)))
        assert all(kinds.get(parent, Kind.DIRECTORY) is Kind.DIRECTORY for parent in above)
        assert member.kind is not Kind.LINK or kinds[member.target] is Kind.FILE
        kinds[name] = member.kind


def tar(data: bytes) -> None:
    """Members are read in order, each with its data within the archive and its pieces within the file."""
    end = 0
    with contextlib.suppress(ImageFormatError):
        for member in members(io.BytesIO(data), len(data)):
            assert end < member.offset
            end = member.offset + member.stored
            assert end <= len(data)
            pieces = member.pieces or ((0, member.size),)
            assert member.pieces is not None or member.stored == member.size
            assert sum(length for _, length in pieces) == member.stored or not member.pieces
            assert all(0 <= at <= at + length <= member.size for at, length in pieces)


def layers(data: bytes) -> None:
    """Layers become a tree without a name that leaves it, whose ramdisk reads back name by name."""
    with tempfile.TemporaryDirectory(prefix="alcove-fuzz-") as name:
        contents = data.split(b"\xfe\xed\xfa\xce")[:4]
        try:
            flat = oci.flatten(oci.load_layout(layout(Path(name, "layout"), contents)), Path(name))
            add_init_layer(flat.root)
            for path, _ in walk(flat.root):
                assert not {b"", b".", b".."} & set(path.removesuffix(b"/").split(b"/"))
            entries = list(application_entries(flat.root, {b"cmd": b"x\n", b"env": b""}, flat.read))
        except ImageFormatError:
            return
        if sum(entry.size for entry in entries) > LIMIT:  # a sparse file, which a few bytes can make large
            return
        archive = b"".join(cpio.archive(entries))
        members = [event for event in _events(archive, 1 << 20) if isinstance(event, Member)]
        assert [member.name for member in members] == [entry.name for entry in entries]


def gunzip(data: bytes) -> None:
    """A blob unpacks to what zlib makes of it too, in bounded pieces, or it is refused."""
    found = bytearray()
    try:
        for chunk in gunzipped(io.BytesIO(data).read):
            assert len(chunk) <= 1 << 20
            found += chunk
            if len(found) > LIMIT:
                return
    except BrokenError:
        return
    with contextlib.suppress(zlib.error):  # it minds flags that have no meaning
        assert found == b"".join(_inflated(data))


def _inflated(data: bytes) -> Iterator[bytes]:
    while data:
        stream = zlib.decompressobj(31)
        yield stream.decompress(data)
        assert stream.eof
        data = stream.unused_data


def gzip_files() -> Iterable[bytes]:
    """One with each set of flags, and files of several members."""
    members_ = [gzip_member(b"content " * flags, flags) for flags in range(0, 32, 2)]
    return [*members_, b"".join(members_), members_[3] * 40]
