"""What a ramdisk of an image holds, read as the kernel unpacks it (Linux init/initramfs.c, unpack_to_rootfs).

Core: bytes in, members out; a chunk of unpacked data in memory, and never more, whatever the ramdisk claims.

    zeros | a cpio archive, `codec.cpio_reader` | a gzip stream of such | …, one after the other in any order

xz, zstd and the other compressions that a kernel may know are named in the error and not read.
"""

from __future__ import annotations

import hashlib
import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from alcove.codec.cpio_reader import CpioReader, Data, Event, Member
from alcove.errors import ImageFormatError

MAX_UNPACKED: Final = 16 << 30  # ours: bytes that the gzip streams of a ramdisk may unpack to

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_CHUNK: Final = 1 << 20
_GZIP: Final = 31  # zlib.decompressobj: 32 KiB window, gzip header and trailer
_GZIP_MAGIC: Final = b"\x1f\x8b"
_OTHERS: Final = {  # Linux lib/decompress.c
    b"\x1f\x9e": "gzip of the old kind",
    b"BZ": "bzip2",
    b"\x5d\x00": "lzma",
    b"\xfd7": "xz",
    b"\x89L": "lzo",
    b"\x02!": "lz4",
    b"(\xb5": "zstd",
}


class RamdiskReader:
    """Takes a ramdisk in chunks of any size; gives the events of its cpio archives.

    Args:
        limit: Bytes that compressed parts may unpack to.
    """

    def __init__(self, limit: int = MAX_UNPACKED) -> None:
        self._limit = limit
        self._room = limit
        self._outer = CpioReader()
        self._magic = b""  # the first byte of a compressed part, until its second comes
        self._stream: _Gzip | None = None
        self.compressed = False

    def receive(self, data: bytes) -> Iterator[Event]:
        """The events of the next chunk; take them all before the next call.

        Raises:
            ImageFormatError: When the kernel would not unpack it; offsets in a compressed part are unpacked ones.
        """
        while data:
            if self._stream is None:
                yield from self._outer.receive(self._magic + data)
                data, self._magic = self._outer.unused_data, b""
                if len(data) == 1:
                    self._outer.skip(0)
                    self._magic = data
                    return
                if data:
                    self._begin(data)
            else:
                yield from self._stream.receive(data)
                data = self._stream.unused_data
                self._room = self._stream.room
                if self._stream.ended:
                    self._outer.skip(self._stream.taken)
                    self._stream = None

    def close(self) -> None:
        """The ramdisk has ended.

        Raises:
            ImageFormatError: When it ended too early.
        """
        if self._stream is not None:
            raise ImageFormatError("the ramdisk ends inside its compressed part", field="gzip")
        if self._magic:
            self._begin(self._magic)
        self._outer.close()

    def _begin(self, data: bytes) -> None:
        offset = self._outer.position
        if data.startswith(_GZIP_MAGIC):
            self._stream = _Gzip(offset, self._room, self._limit)
            self.compressed = True
            return
        kind = _OTHERS.get(data[:2])
        if kind is not None:
            raise ImageFormatError(f"compressed with {kind}, which is not read here", field="ramdisk", offset=offset)
        raise ImageFormatError("neither cpio, nor gzip, nor zeros", field="ramdisk", offset=offset)


class _Gzip:
    """One gzip stream with archives in it."""

    def __init__(self, offset: int, room: int, limit: int) -> None:
        self._offset, self._limit, self.room = offset, limit, room
        self._inflater = zlib.decompressobj(_GZIP)
        self._inner = CpioReader()
        self.taken = 0
        self.ended = False
        self.unused_data = b""

    def receive(self, data: bytes) -> Iterator[Event]:
        while data and not self.ended:
            chunk = self._inflate(data)
            self.room -= len(chunk)
            if self.room < 0:
                raise ImageFormatError(
                    f"it unpacks to more than {self._limit} bytes", field="gzip", offset=self._offset
                )
            yield from self._inner.receive(chunk)
            left = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            self.taken += len(data) - len(left)
            data = left
            if self._inflater.eof:
                self._inner.close()
                self.ended = True
        self.unused_data = data

    def _inflate(self, data: bytes) -> bytes:
        try:
            return self._inflater.decompress(data, _CHUNK)
        except zlib.error as error:
            raise ImageFormatError(f"broken compression: {error}", field="gzip", offset=self._offset) from None


@dataclass(frozen=True, slots=True)
class Item:
    """A member of a ramdisk with what it holds.

    Attributes:
        sha256: Of the content of a regular file; None for all else.
        target: Of a symlink; empty for all else.
    """

    member: Member
    sha256: bytes | None = None
    target: bytes = b""


class ItemReader:
    """A `RamdiskReader` that digests what the members hold."""

    def __init__(self, limit: int = MAX_UNPACKED) -> None:
        self._reader = RamdiskReader(limit)
        self._open: _Open | None = None

    @property
    def compressed(self) -> bool:
        """Whether a part so far was compressed."""
        return self._reader.compressed

    def receive(self, data: bytes) -> Iterator[Item]:
        """The members that are whole with this chunk.

        Raises:
            ImageFormatError: As `RamdiskReader.receive`.
        """
        for event in self._reader.receive(data):
            if isinstance(event, Member):
                self._open = _Open(event)
            elif isinstance(event, Data) and self._open is not None:
                self._open.update(event.chunk)
            if self._open is not None and not self._open.left:
                yield self._open.item()
                self._open = None

    def close(self) -> None:
        """As `RamdiskReader.close`."""
        self._reader.close()


class _Open:
    """A member whose data is coming."""

    def __init__(self, member: Member) -> None:
        self.left = member.size
        self._member = member
        self._digest = hashlib.sha256()
        self._target = b""

    def update(self, chunk: bytes) -> None:
        self.left -= len(chunk)
        if stat.S_ISLNK(self._member.mode):
            self._target += chunk
        else:
            self._digest.update(chunk)

    def item(self) -> Item:
        regular = stat.S_ISREG(self._member.mode)
        return Item(self._member, self._digest.digest() if regular else None, self._target)


def items(chunks: Iterable[bytes], limit: int = MAX_UNPACKED) -> Iterator[Item]:
    """Every member of the ramdisk that comes in `chunks`.

    Raises:
        ImageFormatError: As `RamdiskReader.receive`.
    """
    reader = ItemReader(limit)
    for chunk in chunks:
        yield from reader.receive(chunk)
    reader.close()


def is_device(mode: int) -> bool:
    """Whether it is that of a device node."""
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def item_json(item: Item) -> dict[str, Any]:
    """A member's attributes, by the names that `eif diff` gives them too."""
    member = item.member
    attributes: dict[str, Any] = {
        "name": printable(member.name),
        "type": _KINDS.get(stat.S_IFMT(member.mode), "unknown"),
        "mode": f"{stat.S_IMODE(member.mode):04o}",
        "uid": member.uid,
        "gid": member.gid,
        "mtime": member.mtime,
        "size": member.size,
        "inode": member.inode,
        "links": member.links,
    }
    if item.sha256 is not None:
        attributes["sha256"] = item.sha256.hex()
    if stat.S_ISLNK(member.mode):
        attributes["target"] = printable(item.target)
    if is_device(member.mode):
        attributes["device"] = f"{member.rdev[0]}:{member.rdev[1]}"
    return attributes


def printable(text: bytes) -> str:
    """Bytes as text for a terminal: what is not UTF-8, control characters and backslashes are escaped."""
    whole = text.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole)
