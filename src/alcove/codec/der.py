"""DER (X.690 §10, §11), read strictly: what a certificate of attestation.md §4.1 needs and no more.

Core: bytes in, nodes out.

Tags have one byte; lengths are definite and in their shortest form; a child never runs past its parent and nothing is
left over in it (attestation.md §6, "DER").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
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


@dataclass(frozen=True, slots=True)
class Node:
    """One item: its tag, its whole encoding, its content and where it begins."""

    tag: int
    raw: bytes
    content: bytes
    offset: int

    def expect(self, tag: int, name: str) -> Node:
        """This node, which must have `tag`."""
        if self.tag != tag:
            raise DerError(f"{name}: tag {self.tag:#04x} where {tag:#04x} must be", self.offset)
        return self

    def children(self, tag: int, name: str) -> list[Node]:
        """The items in this node, which must have `tag`."""
        self.expect(tag, name)
        start = self.offset + len(self.raw) - len(self.content)
        nodes, at = [], 0
        while at < len(self.content):
            node = _node(self.content, at, start)
            nodes.append(node)
            at += len(node.raw)
        return nodes

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
        if self.tag == UTC_TIME and _UTC_DIGITS.fullmatch(self.content):
            century = b"19" if self.content[:2] >= b"50" else b"20"
            digits = century + self.content[:-1]
        elif self.tag == GENERALIZED_TIME and _GENERALIZED_DIGITS.fullmatch(self.content):
            digits = self.content[:-1]
        else:
            raise DerError(f"{name}: no UTCTime or GeneralizedTime that ends in Z", self.offset)
        fields = [int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, 14, 2))]
        if self.tag == GENERALIZED_TIME and fields[0] < _FIRST_GENERALIZED_YEAR:
            raise DerError(f"{name}: a GeneralizedTime before 2050", self.offset)
        try:
            return datetime(*fields, tzinfo=UTC)  # type: ignore[arg-type,misc]  # six integers
        except ValueError as error:
            raise DerError(f"{name}: {error}", self.offset) from None


def parse(data: bytes) -> Node:
    """The one item that `data` holds.

    Raises:
        DerError: For anything else.
    """
    node = _node(data, 0, 0)
    if len(node.raw) != len(data):
        raise DerError("bytes follow the item", len(node.raw))
    return node


def _node(data: bytes, at: int, base: int) -> Node:
    if len(data) - at < 2:
        raise DerError("the input ends inside a head", base + at)
    tag, length, start = data[at], data[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise DerError("a tag of more than one byte", base + at)
    if length >= 0x80:
        length, start = _long_length(data, at, base)
    end = start + length
    if end > len(data):
        raise DerError("an item that runs past its parent", base + at)
    return Node(tag, data[at:end], data[start:end], base + at)


def _long_length(data: bytes, at: int, base: int) -> tuple[int, int]:
    size = data[at + 1] & 0x7F
    start = at + 2 + size
    if not 1 <= size <= _MAX_LENGTH_BYTES or start > len(data):
        raise DerError("an indefinite, reserved or cut length", base + at)
    length = int.from_bytes(data[at + 2 : start])
    if length < 0x80 or data[at + 2] == 0:
        raise DerError("a length that is not in its shortest form", base + at)
    return length, start
