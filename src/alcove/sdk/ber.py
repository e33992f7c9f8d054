"""BER (X.690): read one value into a small tree, whatever its length forms.

Core: bytes in, nodes out.

Definite and indefinite lengths, long lengths with leading zeros and constructed strings are all BER, and accepted.
Tags of more than one octet do not occur in what we read, and are refused. The input is hostile: depth and number of
nodes are limited, and a length is compared with what is left before anything is sliced.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_DEPTH: Final = 16  # CMS needs 9 (sdk.md §4.1)
MAX_NODES: Final = 1024  # a 6144-byte envelope in 16-byte chunks has about 400
CONSTRUCTED: Final = 0x20
OCTET_STRING: Final = 0x04
_MULTI_OCTET_TAG: Final = 0x1F
_INDEFINITE: Final = 0x80


class Node(NamedTuple):
    """One value: its identifier octet, its content when primitive, its children when constructed."""

    tag: int
    content: bytes
    children: tuple[Node, ...]

    def octets(self, tag: int = OCTET_STRING) -> bytes:
        """The string under `tag`, in one piece or in several (X.690 §8.7).

        Args:
            tag: The identifier octet of the primitive form; OCTET STRING, or an implicit tag in its place.

        Raises:
            ValueError: It is something else.
        """
        if self.tag == tag:
            return self.content
        if self.tag == tag | CONSTRUCTED:
            return b"".join([child.octets() for child in self.children])
        raise ValueError(f"tag {self.tag:#04x} where a string was expected")


def parse(data: bytes) -> Node:
    """The one value that `data` holds.

    Raises:
        ValueError: It is not exactly one BER value within the limits.
    """
    reader = _Reader(data)
    node = reader.value(0, len(data), MAX_DEPTH)
    if reader.at != len(data):
        raise ValueError(f"{len(data) - reader.at} bytes follow the value")
    return node


class _Reader:
    """Walks forward once; `at` is the offset of the next octet."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._nodes = 0
        self.at = 0

    def value(self, start: int, end: int, depth: int) -> Node:
        """The value that begins at `start` and may not pass `end`."""
        self._nodes += 1
        if depth == 0 or self._nodes > MAX_NODES:
            raise ValueError(f"too deep or too many values (at offset {start})")
        tag, length = self._header(start, end)
        if not tag & CONSTRUCTED:
            if length is None:
                raise ValueError(f"a primitive value of indefinite length (at offset {start})")
            content = self._data[self.at : self.at + length]
            self.at += length
            return Node(tag, content, ())
        children: list[Node] = []
        inner_end = end if length is None else self.at + length
        while not self._ends(inner_end, indefinite=length is None):
            children.append(self.value(self.at, inner_end, depth - 1))
        return Node(tag, b"", tuple(children))

    def _ends(self, end: int, *, indefinite: bool) -> bool:
        """Whether the constructed value is over; steps over an end-of-contents mark."""
        if not indefinite:
            return self.at == end
        if self._data[self.at : min(end, self.at + 2)] != b"\x00\x00":
            return False
        self.at += 2
        return True

    def _header(self, start: int, end: int) -> tuple[int, int | None]:
        """Tag and length; None is indefinite."""
        if start + 2 > end:
            raise ValueError(f"the input ends inside a header (at offset {start})")
        tag, first = self._data[start], self._data[start + 1]
        if tag == 0 or tag & _MULTI_OCTET_TAG == _MULTI_OCTET_TAG:
            raise ValueError(f"tag {tag:#04x} cannot be here (at offset {start})")
        self.at = start + 2
        if first == _INDEFINITE:
            return tag, None
        length = first
        if first > _INDEFINITE:
            size = first - _INDEFINITE
            if self.at + size > end:
                raise ValueError(f"the input ends inside a length (at offset {start})")
            length = int.from_bytes(self._data[self.at : self.at + size])
            self.at += size
        if length > end - self.at:
            raise ValueError(f"a value of {length} bytes where {end - self.at} are left (at offset {start})")
        return tag, length
