"""Reads cpio archives (newc) that anybody may have written, as the kernel unpacks them (Linux init/initramfs.c).

Core: bytes in, events out; holds one header and name, and never more, whatever a header claims.

    between members   zeros are skipped; a header begins at a multiple of 4; what else comes is left in `unused_data`
    header, name      both magics, 070701 and 070702 (with a sum of the data); hex digits of either case
    data, padding     given on in the chunks they came in; up to the next multiple of 4

So archives may follow each other, with or without trailers. Where the kernel drops a member in silence (a name or the
target of a symlink that is too long) or stops in the middle of the archive, this reader refuses it.
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

from alcove.codec.cpio import MAX_FIELD, MAX_NAME
from alcove.errors import ImageFormatError

_FIELDS: Final = (
    "inode", "mode", "uid", "gid", "nlink", "mtime", "file size", "devmajor", "devminor", "rdevmajor", "rdevminor",
    "namesize", "check",
)  # fmt: skip
_NUMBERS: Final = struct.Struct(">13I")  # the fields above, once their hex digits are bytes
_HEADER_SIZE: Final = 110  # 6 + 13 × 8
_PLAIN, _SUMMED = b"070701", b"070702"
_DIGITS: Final = re.compile(rb"[0-9A-Fa-f]*")
_ZEROS: Final = re.compile(rb"\0+")
_FIRST: Final = ord("0")  # of a magic
TRAILER: Final = b"TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Member:
    """A member begins; `size` bytes of data follow.

    Attributes:
        offset: Of its header in the archive, in bytes.
        name: As it stands, perhaps with a slash at its end; never empty and without NUL.
        mode: Type and permission bits as in st_mode.
        device: Major and minor number of where the file once was; `rdev` those of a device node.
    """

    offset: int
    name: bytes
    inode: int
    mode: int
    uid: int
    gid: int
    links: int
    mtime: int
    size: int
    device: tuple[int, int]
    rdev: tuple[int, int]

    @property
    def unpacked(self) -> bool:
        """Whether the kernel makes it: of all types but file and symlink, only members without data."""
        return not self.size or stat.S_ISREG(self.mode) or stat.S_ISLNK(self.mode)


@dataclass(frozen=True, slots=True)
class Data:
    """More data of the member that began last."""

    chunk: bytes


@dataclass(frozen=True, slots=True)
class Trailer:
    """The end of an archive; another may follow."""

    offset: int
    inode: int


Event: TypeAlias = Member | Data | Trailer


class CpioReader:
    """Takes an archive in chunks of any size; gives its members.

    Attributes:
        position: Bytes taken so far.
        unused_data: What came, between two members, that is neither zeros nor a header; nothing is taken after it.
    """

    def __init__(self) -> None:
        self.position = 0
        self.unused_data = b""
        self._head = bytearray()  # header and name, until they are whole
        self._wanted = 0  # length of header and name; 0 outside of them
        self._begin = 0  # where they began
        self._left = 0  # bytes of data to come
        self._padding = 0  # bytes to skip after them
        self._sum: int | None = None  # what is left of the sum in the header, where there is one

    def receive(self, data: bytes) -> Iterator[Event]:
        """The events of the next chunk; take them all before the next call.

        Raises:
            ImageFormatError: When the archive is malformed; with the field, and its offset in the archive.
        """
        if self.unused_data:
            self._refuse("magic", "neither a cpio header nor zeros")
        at = 0
        while at < len(data) and not self.unused_data:
            if self._wanted:
                piece = data[at : at + self._wanted - len(self._head)]
                event = self._collect(piece)
            elif self._left:
                piece = data[at : at + self._left]
                event = self._take(piece)
            else:
                piece = self._skipped(data, at)
                event = None
            at += len(piece)
            self.position += len(piece)
            if event is not None:
                yield event

    def skip(self, count: int) -> None:
        """Go on `count` bytes further on: `unused_data` was the beginning of something else of that length."""
        self.unused_data = b""
        self.position += count

    def close(self) -> None:
        """The archive has ended.

        Raises:
            ImageFormatError: When it ended inside a member, or with something that is no cpio.
        """
        if self.unused_data:
            self._refuse("magic", "neither a cpio header nor zeros")
        if self._wanted or self._left:
            self._refuse("file size" if self._left else "header", "the archive ends inside a member")

    def _refuse(self, field: str, message: str, offset: int | None = None) -> NoReturn:
        raise ImageFormatError(message, field=field, offset=self.position if offset is None else offset)

    def _skipped(self, data: bytes, at: int) -> bytes:
        """Padding, and zeros between members; empty where a header begins, or something foreign."""
        if self._padding:
            piece = data[at : at + self._padding]
            self._padding -= len(piece)
            return piece
        zeros = _ZEROS.match(data, at)
        if zeros:
            return zeros[0]
        if data[at] != _FIRST:
            self.unused_data = data[at:]
        elif self.position % 4:
            self._refuse("magic", "a header at an offset that is no multiple of 4")
        else:
            self._wanted, self._begin = _HEADER_SIZE, self.position
        return b""

    def _collect(self, piece: bytes) -> Event | None:
        """More of a header or of the name after it; the member, when both are whole."""
        self._head += piece
        if len(self._head) < self._wanted:
            return None
        if self._wanted == _HEADER_SIZE:
            size = self._parse()["namesize"]
            if not 1 < size <= MAX_NAME:
                self._refuse("namesize", f"{size} is not from 2 to {MAX_NAME}", self._begin + 94)
            self._wanted += size + -(_HEADER_SIZE + size) % 4
            return None
        event = self._member()
        self._head.clear()
        self._wanted = 0
        return event

    def _parse(self) -> dict[str, int]:
        magic, digits = self._head[:6], self._head[6:_HEADER_SIZE]
        if magic not in (_PLAIN, _SUMMED):
            self._refuse("magic", f"{bytes(magic)!r} is not that of a newc archive", self._begin)
        good = _DIGITS.match(digits)
        if good and good.end() < len(digits):
            field = _FIELDS[good.end() // 8]
            self._refuse(field, "not a hexadecimal number", self._begin + 6 + good.end() // 8 * 8)
        return dict(zip(_FIELDS, _NUMBERS.unpack(bytes.fromhex(digits.decode())), strict=True))

    def _member(self) -> Event:
        fields = self._parse()
        name, _, rest = bytes(self._head[_HEADER_SIZE : _HEADER_SIZE + fields["namesize"]]).partition(b"\0")
        if not name or len(name) == fields["namesize"] or rest.strip(b"\0"):
            self._refuse("name", "not a name with a NUL at its end alone", self._begin + _HEADER_SIZE)
        mode, size = fields["mode"], fields["file size"]
        if stat.S_ISLNK(mode) and size > MAX_NAME:
            self._refuse("file size", f"{size} bytes are too many for the target of a symlink", self._begin + 54)
        summed = self._head[:6] == _SUMMED and stat.S_ISREG(mode)
        self._sum = fields["check"] if summed else None
        self._left, self._padding = size, -size % 4
        if summed and not size and fields["check"]:
            self._refuse("check", "the sum of the data is another", self._begin + 102)
        if name == TRAILER:
            self._left, self._padding = 0, size + -size % 4
            return Trailer(self._begin, fields["inode"])
        return Member(
            offset=self._begin,
            name=name,
            inode=fields["inode"],
            mode=mode,
            uid=fields["uid"],
            gid=fields["gid"],
            links=fields["nlink"],
            mtime=fields["mtime"],
            size=size,
            device=(fields["devmajor"], fields["devminor"]),
            rdev=(fields["rdevmajor"], fields["rdevminor"]),
        )

    def _take(self, chunk: bytes) -> Data:
        self._left -= len(chunk)
        if self._sum is not None:
            self._sum = (self._sum - sum(chunk)) & MAX_FIELD
            if not self._left and self._sum:
                self._refuse("check", "the sum of the data is another", self._begin + 102)
        return Data(chunk)
