"""DER (X.690 §10, §11), read strictly: what a certificate of attestation.md §4.1 needs; `der_writer` writes it.

Core: bytes in, nodes out.

Tags have one byte; lengths are definite and in their shortest form; a child never runs past its parent and nothing is
left over in it (attestation.md §6, "DER").
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OBJECT_IDENTIFIER: Final = 0x06
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30

_MAX_LENGTH_BYTES: Final = 4
_UTC_DIGITS: Final = re.compile(rb"[0-9]{12}Z")
_GENERALIZED_DIGITS: Final = re.compile(rb"[0-9]{14}Z")
_FIRST_GENERALIZED_YEAR: Final = 2050  # RFC 5280 §4.1.2.5: UTCTime through 2049


class DerError(ValueError):
    """Bytes that are not DER, or not of the expected type; `offset` counts from the start of the outermost item."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (at offset {offset})")
        self.offset = offset


class Node(NamedTuple):  # a tuple, since a chain has 260 of them and a frozen dataclass takes four times as long
    """One item, in place: its tag and where in `source` it, its content and what follows begin."""

    tag: int
    source: bytes
    offset: int
    start: int
    end: int

    @property
    def raw(self) -> bytes:
        """The whole encoding."""
        return self.source[self.offset : self.end]

    @property
    def content(self) -> bytes:
        """The content alone."""
        return self.source[self.start : self.end]

    def expect(self, tag: int, name: str) -> Node:
        """This node, which must have `tag`."""
        if self.tag != tag:
            raise DerError(f"{name}: tag {self.tag:#04x} where {tag:#04x} must be", self.offset)
        return self

    def children(self, tag: int, name: str, count: int | None = None) -> list[Node]:
        """The items in this node, which must have `tag`; `count` of them, when that is given."""
        if self.tag != tag:
            self.expect(tag, name)
        nodes = _items(self.source, self.start, self.end)
        if count is not None and len(nodes) != count:
            raise DerError(f"{name}: {len(nodes)} fields where {count} must be", self.offset)
        return nodes

    def inner(self, name: str) -> Node:
        """The one item that this OCTET STRING holds."""
        return self.children(OCTET_STRING, name, 1)[0]

    def integer(self, name: str) -> int:
        """A non-negative INTEGER in its shortest form."""
        content = self.expect(INTEGER, name).content
        if not content or content[0] & 0x80:
            raise DerError(f"{name}: an empty or negative integer", self.offset)
        if len(content) > 1 and content[0] == 0 and not content[1] & 0x80:
            raise DerError(f"{name}: an integer with a needless leading zero", self.offset)
        return int.from_bytes(content)

    def boolean(self, name: str) -> bool:
        """A BOOLEAN, 00 or FF."""
        content = self.expect(BOOLEAN, name).content
        if content not in {b"\x00", b"\xff"}:
            raise DerError(f"{name}: a boolean other than 00 and FF", self.offset)
        return content == b"\xff"

    def bit_string(self, name: str) -> tuple[int, bytes]:
        """The number of unused bits, which are zero, and the octets of a BIT STRING that is not empty."""
        content = self.expect(BIT_STRING, name).content
        if len(content) < 2 or content[0] > 7:
            raise DerError(f"{name}: an empty bit string, or more than seven unused bits", self.offset)
        if content[-1] & ((1 << content[0]) - 1):
            raise DerError(f"{name}: unused bits that are not zero", self.offset)
        return content[0], content[1:]

    def time(self, name: str) -> datetime:
        """A UTCTime or GeneralizedTime in the only forms that RFC 5280 §4.1.2.5 allows."""
        text = self.content
        if self.tag == UTC_TIME and _UTC_DIGITS.fullmatch(text):
            text = (b"19" if text >= b"50" else b"20") + text
        elif self.tag != GENERALIZED_TIME or not _GENERALIZED_DIGITS.fullmatch(text):
            raise DerError(f"{name}: no UTCTime or GeneralizedTime that ends in Z", self.offset)
        elif int(text[:4]) < _FIRST_GENERALIZED_YEAR:
            raise DerError(f"{name}: a GeneralizedTime before 2050", self.offset)
        # One number is faster to take apart than text.
        day, clock = divmod(int(text[:14]), 1_000_000)
        hour, minute, second = clock // 10_000, clock // 100 % 100, clock % 100
        try:
            return datetime(day // 10_000, day // 100 % 100, day % 100, hour, minute, second, tzinfo=UTC)
        except ValueError as error:
            raise DerError(f"{name}: {error}", self.offset) from None


_new: Final = tuple.__new__  # what `Node(…)` comes to, without a call in Python


def parse(data: bytes) -> Node:
    """The one item that `data` holds.

    Raises:
        DerError: For anything else.
    """
    nodes = _items(data, 0, len(data))
    if len(nodes) != 1:
        raise DerError("not exactly one item", 0)
    return nodes[0]


def _items(data: bytes, at: int, limit: int) -> list[Node]:
    """The items that lie between two offsets of `data`."""
    nodes: list[Node] = []
    while at < limit:
        start = at + 2
        if start > limit:
            raise DerError("the input ends inside a head", at)
        tag, length = data[at], data[at + 1]
        if tag & 0x1F == 0x1F:
            raise DerError("a tag of more than one byte", at)
        if length >= 0x80:
            length, start = _long_length(data, at, limit)
        end = start + length
        if end > limit:
            raise DerError("an item that runs past its parent", at)
        nodes.append(_new(Node, (tag, data, at, start, end)))
        at = end
    return nodes


def _long_length(data: bytes, at: int, limit: int) -> tuple[int, int]:
    size = data[at + 1] & 0x7F
    start = at + 2 + size
    if not 1 <= size <= _MAX_LENGTH_BYTES or start > limit:
        raise DerError("an indefinite, reserved or cut length", at)
    length = int.from_bytes(data[at + 2 : start])
    if length < 0x80 or data[at + 2] == 0:
        raise DerError("a length that is not in its shortest form", at)
    return length, start
