"""The application's file system out of an image's ramdisks, as a tar archive like `docker export` gives.

Core: members in, tar out; twice over the ramdisks, so that of each name only what the kernel would leave is written.
Nothing is made on this machine, so devices, owners and set-uid bits need no root.

    a name that comes again   a directory takes the later mode, owner and time (eif.md §7.3 step 4), else the later wins
    two links or more         hard links, when device and inode are the same (Linux init/initramfs.c, maybe_link)
    refused                   `..`, a name below a file or symlink, a directory that is also something else
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from alcove.codec.cpio_reader import Data, Event, Member, Trailer
from alcove.errors import ImageFormatError
from alcove.image.contents import printable

MAX_MEMBERS: Final = 2_000_000  # ours: names that are held in memory
PREFIX: Final = b"rootfs"  # eif.md §7.3

_BLOCK: Final = 512
_RECORD: Final = 20 * _BLOCK
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}  # no sockets: tar has none

_Link = tuple[int, int, int, int]  # archive, major and minor of the device, inode


@dataclass(slots=True)
class _Name:
    """What becomes of a name: the first member that has it, and the last, which counts."""

    first: int
    last: int
    member: Member
    link: _Link | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """Every name, and of each group of hard links the member that carries the data."""

    names: dict[bytes, _Name] = field(default_factory=dict)
    carriers: dict[_Link, tuple[int, bytes]] = field(default_factory=dict)

    def add(self, index: int, name: bytes, member: Member, archive: int) -> None:
        linked = stat.S_ISREG(member.mode) and member.links > 1
        link = (archive, *member.device, member.inode) if linked else None
        old = self.names.get(name)
        if old is not None and stat.S_ISDIR(old.member.mode) != stat.S_ISDIR(member.mode):
            raise _refusal("is a directory and something else", member)
        self.names[name] = _Name(old.first if old else index, index, member, link)
        if link is not None and (member.size or link not in self.carriers):
            self.carriers[link] = (index, name)

    def check_parents(self) -> None:
        """No name goes through a file or a symlink."""
        for name, found in self.names.items():
            parent = name
            while b"/" in parent:
                parent = parent.rsplit(b"/", 1)[0]
                above = self.names.get(parent)
                if above is not None and not stat.S_ISDIR(above.member.mode):
                    raise _refusal("goes through something that is no directory", found.member)

    def is_due(self, index: int, name: bytes) -> bool:
        """Whether the name is written when this member comes: a directory at its first, all else at its last."""
        found = self.names[name]
        if stat.S_ISDIR(found.member.mode):
            return index == found.first
        return index == found.last and self.target(name) is None

    def target(self, name: bytes) -> bytes | None:
        """The name that this one is a hard link to; None when it is written itself."""
        found = self.names[name]
        carrier = self.carriers.get(found.link) if found.link else None
        if carrier is None or carrier[1] == name or self.names[carrier[1]].last != carrier[0]:
            return None
        return carrier[1]


def _refusal(what: str, member: Member) -> ImageFormatError:
    return ImageFormatError(f"{printable(member.name)} {what}", field="name", offset=member.offset)


def rootfs_tar(read: Callable[[], Iterable[Event]], most: int = MAX_MEMBERS) -> Iterator[bytes]:
    """The tar archive of what is below `rootfs/`.

    Args:
        read: Gives the events of all ramdisks, one after the other; called twice.
        most: Names that may be held.

    Raises:
        ImageFormatError: When a ramdisk cannot be read, a name is refused, or there is no `rootfs/`.
    """
    plan = _plan(read(), most)
    plan.check_parents()
    written = 0
    for chunk in _members(read(), plan):
        written += len(chunk)
        yield chunk
    yield bytes(2 * _BLOCK + -(written + 2 * _BLOCK) % _RECORD)


def _plan(events: Iterable[Event], most: int) -> _Plan:
    plan = _Plan()
    archive = 0
    for index, event, name in _named(events):
        archive += isinstance(event, Trailer)
        if isinstance(event, Member) and name:
            plan.add(index, name, event, archive)
            if len(plan.names) > most:
                raise ImageFormatError(f"more than {most} names", field="rootfs")
    if not plan.names:
        hint = "nitro-cli puts the application there; `alcove eif explain` lists what this image has"
        raise ImageFormatError("the ramdisks hold no rootfs/", field="rootfs", hint=hint)
    return plan


def _named(events: Iterable[Event]) -> Iterator[tuple[int, Event, bytes]]:
    """Every event with the number of its member, and the member's name below `rootfs/`; empty for what is not there."""
    index, name = 0, b""
    for event in events:
        if isinstance(event, Member):
            index, name = index + 1, _below(event)
        yield index, event, name


def _below(member: Member) -> bytes:
    parts = [part for part in member.name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise _refusal("leaves the archive", member)
    made = member.unpacked and stat.S_IFMT(member.mode) in _TYPES
    return b"/".join(parts[1:]) if made and parts[:1] == [PREFIX] else b""


def _members(events: Iterable[Event], plan: _Plan) -> Iterator[bytes]:
    """Headers and data; what is a hard link comes last, when what it links to is there."""
    left = 0
    target: bytearray | None = None  # of a symlink, whose header holds it
    for index, event, name in _named(events):
        if isinstance(event, Member):
            left, target = 0, None
            if not name or not plan.is_due(index, name):
                continue
            left = event.size
            if stat.S_ISLNK(event.mode):
                target = bytearray()
            else:
                yield _header(name, plan.names[name].member)
        elif isinstance(event, Data) and left:
            left -= len(event.chunk)
            if target is None:
                yield event.chunk
                yield bytes(-plan.names[name].member.size % _BLOCK if not left else 0)
                continue
            target += event.chunk
            if not left:
                yield _header(name, plan.names[name].member, bytes(target))
    for name, found in plan.names.items():
        if (carrier := plan.target(name)) is not None:
            yield _header(name, found.member, carrier, tarfile.LNKTYPE)


def _header(name: bytes, member: Member, link: bytes = b"", kind: bytes | None = None) -> bytes:
    info = tarfile.TarInfo(_text(name))
    info.type = kind or _TYPES[stat.S_IFMT(member.mode)]
    info.mode, info.uid, info.gid, info.mtime = stat.S_IMODE(member.mode), member.uid, member.gid, member.mtime
    info.size = member.size if info.isreg() else 0
    info.linkname = _text(link)
    info.devmajor, info.devminor = member.rdev
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
