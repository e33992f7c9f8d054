"""Reads the members of a tar archive: ustar, GNU long names and PAX records, as layers of container images have them.

Core: bytes of a seekable file in, members out; data is skipped over and referred to by offset.

Layout: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format".
Extended attributes are passed over. Sparse files keep their holes (`sparse`).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import BinaryIO, Final, NamedTuple

from alcove.errors import ImageFormatError
from alcove.image.sources import sparse

BLOCK: Final = 512
_HALF: Final = BLOCK // 2
MAX_EXTENDED: Final = 1 << 20  # ours: bytes of a long name or of PAX records, which are read into memory
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")  # ustar, 512 bytes:
# name mode uid gid size mtime chksum typeflag linkname magic version uname gname devmajor devminor prefix
_SPARSE: Final = b"GNU.sparse."
# The records that are read. Global ones hold to the end of the archive, so what else it says must not add up.
_RECORDS: Final = {b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"} | {
    _SPARSE + key for key in (b"major", b"minor", b"name", b"size", b"realsize", b"map")
}
_DECIMAL: Final = re.compile(rb"(-?[0-9]{1,20})(?:\.([0-9]*))?")


class Kind(Enum):
    """What a member is."""

    FILE = "file"
    LINK = "hard link"
    SYMLINK = "symbolic link"
    CHAR = "character device"
    BLOCK_DEVICE = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS: Final = {
    b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"1": Kind.LINK, b"2": Kind.SYMLINK,
    b"3": Kind.CHAR, b"4": Kind.BLOCK_DEVICE, b"5": Kind.DIRECTORY, b"6": Kind.FIFO,
}  # fmt: skip


class Member(NamedTuple):  # not a frozen dataclass, which takes six times as long to make: an image has thousands
    """One member; `mtime` is in whole seconds.

    Attributes:
        size: Bytes of the file, holes included.
        offset: Where its data begins in the archive.
        stored: Bytes of data that the archive holds.
        pieces: Of a sparse file: where the stored bytes belong, (offset, length) each; None for any other.
    """

    name: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    offset: int
    stored: int
    pieces: sparse.Pieces | None
    target: bytes
    rdev: tuple[int, int]


class _Header(NamedTuple):
    """A header's fields, and the whole block that they are in."""

    block: bytes
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    flag: bytes
    target: bytes
    rdev: tuple[int, int]


def members(file: BinaryIO, size: int) -> Iterator[Member]:
    """The members of the archive in `file`, which is `size` bytes long.

    Raises:
        ImageFormatError: With the offset of the header that is malformed.
    """
    position = 0
    archive = _Archive(file, size)
    everywhere: dict[bytes, bytes] = {}  # PAX records of the kind "g"
    here: dict[bytes, bytes] = {}  # of the kind "x", and GNU's long names as if they were
    while position + BLOCK <= size:
        block = _read(file, position, BLOCK)
        header = _parse_header(block, position)
        if header is None:  # two blocks of zeros end an archive; one is enough for every reader
            return
        data = position + BLOCK
        if header.flag in b"xgLK":
            content = _extended(file, data, header.size, size)
            if header.flag == b"g":
                everywhere |= _records(content, data)
            elif header.flag == b"x":
                here |= _records(content, data)
            else:
                here[b"path" if header.flag == b"L" else b"linkpath"] = content.split(b"\0", 1)[0]
            position = data + _blocks(header.size)
            continue
        member = _member(header, everywhere | here if everywhere else here, data, archive)
        here = {}
        position = member.offset + _blocks(member.stored)
        yield member
    if any(_read(file, position, max(0, size - position))):
        raise ImageFormatError("the layer ends inside a header", field="tar header", offset=position)


@dataclass(frozen=True, slots=True)
class _Archive:
    """The archive, and its length in bytes."""

    file: BinaryIO
    size: int

    def block(self, offset: int) -> bytes:
        if offset + BLOCK > self.size:
            raise ImageFormatError("the layer ends inside a map", field="tar sparse", offset=offset)
        return _read(self.file, offset, BLOCK)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise ImageFormatError("the layer became shorter while it was read", field="layer", offset=offset)
    return data


def _blocks(size: int) -> int:
    return size + -size % BLOCK


def _extended(file: BinaryIO, offset: int, size: int, file_size: int) -> bytes:
    if size > MAX_EXTENDED or offset + size > file_size:
        raise ImageFormatError(f"an extended header of {size} bytes", field="tar size", offset=offset - BLOCK)
    return _read(file, offset, size)


def _parse_header(block: bytes, offset: int) -> _Header | None:
    if not any(block):
        return None
    name, mode, uid, gid, size, mtime, checksum, flag, target, magic, _, _, _, major, minor, prefix = _HEADER.unpack(
        block
    )
    if _number(checksum, "chksum", offset) != _sum(block) - sum(checksum) + 8 * 0x20:
        raise ImageFormatError("the checksum is wrong", field="tar header", offset=offset)
    name = name.split(b"\0", 1)[0]
    if prefix[0] and magic == b"ustar\0":
        name = prefix.split(b"\0", 1)[0] + b"/" + name
    owner, group = _number(uid, "uid", offset), _number(gid, "gid", offset)
    device = (_number(major, "devmajor", offset), _number(minor, "devminor", offset)) if flag in b"34" else (0, 0)
    length = _number(size, "size", offset)
    if length < 0:
        raise ImageFormatError("a negative size", field="tar size", offset=offset)
    permissions, time = _number(mode, "mode", offset), _number(mtime, "mtime", offset)
    target = target.split(b"\0", 1)[0]
    return _Header(block, name, permissions, owner, group, length, time, flag, target, device)


def _sum(block: bytes) -> int:
    """The sum of a block's bytes.

    The low half of Adler-32 (RFC 1950 §9) is one more than that, modulo 65521, which half a block does not reach; it is
    made in C, several times as fast as the built-in sum.
    """
    return (zlib.adler32(block[:_HALF]) & 0xFFFF) + (zlib.adler32(block[_HALF:]) & 0xFFFF) - 2


def _number(field: bytes, what: str, offset: int) -> int:
    """A number in octal digits, or in base 256 when the first bit is set (GNU)."""
    digits = field.rstrip(b"\0 ")
    if not digits.isdigit():
        if field[0] & 0x80:
            return _binary(field)
        digits = field.partition(b"\0")[0].strip(b" ") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise ImageFormatError("not an octal number", field=f"tar {what}", offset=offset)
    return int(digits, 8)


def _binary(field: bytes) -> int:
    width = 8 * len(field) - 1
    value = int.from_bytes(field) & ((1 << width) - 1)
    return value - (1 << width) if value >> (width - 1) else value


def _records(data: bytes, offset: int) -> dict[bytes, bytes]:
    """PAX records: `LENGTH SP KEY=VALUE LF`, the length in decimal digits and over the whole record."""
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []  # form 0.0 of a sparse map: the same records again and again
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        end = at + int(digits) if space and digits.isdigit() else 0
        record = data[at + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        if end <= at or end > len(data) or not equals or not value.endswith(b"\n"):
            raise ImageFormatError("a malformed record", field="pax header", offset=offset + at)
        if key in (_SPARSE + b"offset", _SPARSE + b"numbytes"):
            pairs.append(value[:-1])
        elif key in _RECORDS:
            records[key] = value[:-1]
        at = end
    return records | {_SPARSE + b"map": b",".join(pairs)} if pairs else records


def _member(header: _Header, pax: dict[bytes, bytes], data_offset: int, archive: _Archive) -> Member:
    at = data_offset - BLOCK
    kind = Kind.FILE if header.flag == b"S" else _KINDS.get(header.flag)
    if kind is None:
        raise ImageFormatError(f"{header.flag!r} is not a type of member", field="tar typeflag", offset=at)
    name = (pax and (pax.get(_SPARSE + b"name") or pax.get(b"path"))) or header.name
    if header.flag == b"\0" and name.endswith(b"/"):  # before ustar, a directory was a file with that name
        kind = Kind.DIRECTORY
    # Other kinds have no data, whatever their size field says (so do Go's archive/tar and GNU tar).
    stored = _decimal(pax, b"size", header.size, at) if kind is Kind.FILE else 0
    if stored < 0 or data_offset + stored > archive.size:
        what = f"a file of {stored} bytes" if stored < 0 else "the data runs past the end of the layer"
        raise ImageFormatError(what, field="tar size", offset=at)
    map_ = _sparse(header, pax, data_offset, stored, archive) if kind is Kind.FILE else None
    size, offset, stored, pieces = (
        (map_.size, map_.offset, map_.stored, map_.pieces) if map_ else (stored, data_offset, stored, None)
    )
    return Member(
        name,
        kind,
        header.mode & 0o7777,
        _decimal(pax, b"uid", header.uid, at),
        _decimal(pax, b"gid", header.gid, at),
        _decimal(pax, b"mtime", header.mtime, at),
        size,
        offset,
        stored,
        pieces,
        pax.get(b"linkpath") or header.target,
        header.rdev,
    )


def _sparse(
    header: _Header, pax: dict[bytes, bytes], data: int, stored: int, archive: _Archive
) -> sparse.Sparse | None:
    if header.flag != b"S":
        return sparse.from_records(pax, archive.block, data, stored) if pax else None
    found = sparse.from_header(
        header.block, lambda field: _number(field, "sparse", data - BLOCK), archive.block, data, stored
    )
    if found.offset + stored > archive.size:
        raise ImageFormatError("the data runs past the end of the layer", field="tar size", offset=data - BLOCK)
    return found


def _decimal(pax: dict[bytes, bytes], key: bytes, default: int, offset: int) -> int:
    """A decimal record, rounded down to a whole number; the header's value when the record is not there."""
    text = pax.get(key)
    if not text:
        return default
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise ImageFormatError(f"{text[:40]!r} is not a number", field=f"pax {key.decode()}", offset=offset)
    whole, fraction = match.groups()
    value = int(whole)
    return value - 1 if whole.startswith(b"-") and (fraction or b"").strip(b"0") else value
