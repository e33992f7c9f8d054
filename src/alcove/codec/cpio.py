"""The cpio archives that enclave images carry: newc, written byte for byte as LinuxKit writes it (eif.md §7.1).

Core: entries in, bytes out, chunk by chunk; the data of a file is asked for only when its turn comes.

    070701  13 fields of 8 lower-case hex digits  name NUL  padding to 4  data  padding to 4
    …       an ordinary entry named TRAILER!!!, then padding of the whole archive to 512

The kernel reads the same format (Documentation/driver-api/early-userspace/buffer-format.rst). LinuxKit's habits that a
measurement depends on: inodes count from 721, the device is 3:1, directories have two links and all else has one.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from alcove.errors import ImageFormatError

DEFAULT_TIME: Final = 1492533000  # eif.md §7.1: 2017-04-18T16:30:00Z
MAX_NAME: Final = 4096  # Linux init/initramfs.c: PATH_MAX, with the NUL; a longer name is skipped in silence
MAX_FIELD: Final = 0xFFFFFFFF  # 8 hex digits

_FIRST_INODE: Final = 721
_DEVICE: Final = (3, 1)
_HEADER: Final = b"070701" + b"%08x" * 13
_HEADER_SIZE: Final = 110  # 6 + 13 × 8
_TRAILER: Final = b"TRAILER!!!"
_BLOCK: Final = 512


Chunk = bytes | memoryview


def _nothing() -> Iterable[Chunk]:
    return ()


@dataclass(slots=True)  # not frozen: that would take most of the time that making an entry takes
class Entry:
    """One member of an archive.

    Attributes:
        name: Its path, without a leading slash.
        mode: Type and permission bits as in st_mode.
        size: Length of `data` in bytes; of the target, for a symlink.
        rdev: Major and minor number of a device node.
        data: Gives the content in chunks that add up to `size`.

    Raises:
        ImageFormatError: For a value that the format cannot hold (eif.md §11).
    """

    name: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = DEFAULT_TIME
    size: int = 0
    rdev: tuple[int, int] = (0, 0)
    data: Callable[[], Iterable[Chunk]] = _nothing

    def __post_init__(self) -> None:
        major, minor = self.rdev
        # One test for the usual case: an image has tens of thousands of entries. Negative numbers stay negative.
        too_wide = (self.mode | self.uid | self.gid | self.mtime | self.size | major | minor) >> 32
        if too_wide or not 0 < len(self.name) < MAX_NAME or b"\0" in self.name or stat.S_ISSOCK(self.mode):
            raise _refusal(self)


def _refusal(entry: Entry) -> ImageFormatError:
    """Why the format cannot hold an entry."""
    name = entry.name.decode("utf-8", "backslashreplace")
    if not 0 < len(entry.name) < MAX_NAME or b"\0" in entry.name:
        return ImageFormatError(f"{name[:60]!r} cannot be a name: 1 to {MAX_NAME - 1} bytes without NUL", field="name")
    fields = {"mode": entry.mode, "uid": entry.uid, "gid": entry.gid, "mtime": entry.mtime, "file size": entry.size}
    fields |= {"rdevmajor": entry.rdev[0], "rdevminor": entry.rdev[1]}
    for field, value in fields.items():
        if not 0 <= value <= MAX_FIELD:
            return ImageFormatError(f"{value} of {name} does not fit in 32 bits", field=field)
    return ImageFormatError(f"{name} is a socket, which an image cannot hold", field="mode")


def file(name: bytes, content: bytes, mode: int = 0o644, mtime: int = DEFAULT_TIME) -> Entry:
    """A regular file of root's with its content in memory."""
    return Entry(name, stat.S_IFREG | mode, mtime=mtime, size=len(content), data=lambda: (content,))


def directory(name: bytes, mode: int = 0o755) -> Entry:
    """A directory of root's."""
    return Entry(name, stat.S_IFDIR | mode)


def symlink(name: bytes, target: bytes, mode: int, *, uid: int = 0, gid: int = 0, mtime: int = DEFAULT_TIME) -> Entry:
    """A symbolic link to `target`; the mode bits are written as given."""
    return Entry(name, stat.S_IFLNK | mode, uid, gid, mtime, len(target), data=lambda: (target,))


def archive(entries: Iterable[Entry]) -> Iterator[Chunk]:
    """The archive of `entries`, in their order.

    Raises:
        ImageFormatError: When an entry gives more or less data than it declared.
    """
    position = 0
    inode = _FIRST_INODE
    padding = b""  # of the data before; given with the next header, for a chunk has its price
    for entry in entries:
        head = padding + _head(entry, inode)
        yield head
        if entry.size:
            yield from _content(entry)
        padding = bytes(-entry.size % 4)
        position += len(head) + entry.size
        inode += 1
    trailer = padding + _head(Entry(_TRAILER, 0, mtime=0), inode)
    yield trailer + bytes(-(position + len(trailer)) % _BLOCK)


def archive_size(entries: Iterable[Entry]) -> int:
    """Length in bytes of the archive of `entries`, without asking for their data."""
    total = sum(_padded(_HEADER_SIZE + len(entry.name) + 1) + _padded(entry.size) for entry in entries)
    return _padded(total + _padded(_HEADER_SIZE + len(_TRAILER) + 1), _BLOCK)


def _padded(size: int, block: int = 4) -> int:
    return size + -size % block


def _head(entry: Entry, inode: int) -> bytes:
    """Header, name and padding of an entry, which begins at a multiple of 4."""
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    owned = (inode & MAX_FIELD, entry.mode, entry.uid, entry.gid, links, entry.mtime, entry.size)
    length = len(entry.name) + 1
    head = _HEADER % (*owned, *_DEVICE, *entry.rdev, length, 0) + entry.name
    return head.ljust(_padded(_HEADER_SIZE + length), b"\0")


def _content(entry: Entry) -> Iterator[Chunk]:
    left = entry.size
    for chunk in entry.data():
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left:
        raise ImageFormatError(f"{entry.name!r} is not {entry.size} bytes long, as declared", field="file size")
