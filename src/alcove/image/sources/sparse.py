"""Maps of sparse files in tar archives: which bytes are stored, and where in the file they belong.

Core: header fields and blocks in, maps out. The file itself is expanded when it is read.

    GNU, old    type `S`; pairs of offset and length in the header, and in blocks between header and data
    PAX 0.0     records GNU.sparse.offset and GNU.sparse.numbytes, which come again for each pair
    PAX 0.1     one record GNU.sparse.map, with commas
    PAX 1.0     lines of decimal digits in the first blocks of the data: the number of pairs, then the pairs

Layout: GNU tar manual, "Storing Sparse Files"; tar.h, struct oldgnu_header and struct sparse_header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from alcove.errors import ImageFormatError

MAX_PIECES: Final = 1 << 18  # ours: pairs of one file, which are held in memory

_BLOCK: Final = 512
_PAIR: Final = 24  # offset and length, 12 bytes each
_HEADER_MAP: Final = slice(386, 482)  # oldgnu_header: sp[4], then isextended, then realsize
_HEADER_MORE: Final = 482
_HEADER_SIZE: Final = slice(483, 495)
_BLOCK_MAP: Final = slice(0, 504)  # sparse_header: sp[21], then isextended
_BLOCK_MORE: Final = 504
_DIGITS: Final = re.compile(rb"[0-9]{1,20}")

Pieces = tuple[tuple[int, int], ...]
ReadBlock = Callable[[int], bytes]  # the block at an offset
Number = Callable[[bytes], int]  # a tar header's number


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse file: its size with the holes, its pieces, and where its stored bytes begin and how many they are."""

    size: int
    pieces: Pieces
    offset: int
    stored: int


def from_header(header: bytes, number: Number, read: ReadBlock, data: int, stored: int) -> Sparse:
    """The map of a member of type `S`.

    Args:
        header: The member's header block.
        number: Reads a number of the header.
        read: Reads a block of the archive.
        data: Offset of the block after the header.
        stored: Size of the member, as the header has it.

    Raises:
        ImageFormatError: When the map is malformed.
    """
    numbers = list(_pairs(header[_HEADER_MAP], number))
    more, position = header[_HEADER_MORE], data
    while more:
        block = read(position)
        position += _BLOCK
        numbers += _pairs(block[_BLOCK_MAP], number)
        more = block[_BLOCK_MORE]
        _check_count(len(numbers) // 2, data - _BLOCK)
    return _checked(numbers, number(header[_HEADER_SIZE]), position, stored, data - _BLOCK)


def _pairs(field: bytes, number: Number) -> Iterator[int]:
    for at in range(0, len(field), _PAIR):
        if not field[at]:
            return
        yield number(field[at : at + 12])
        yield number(field[at + 12 : at + 24])


def from_records(records: dict[bytes, bytes], read: ReadBlock, data: int, stored: int) -> Sparse | None:
    """The map that PAX records tell of; None when they tell of none.

    Args:
        records: The member's records, those of form 0.0 gathered in GNU.sparse.map.
        read: Reads a block of the archive.
        data: Offset of the member's data.
        stored: Size of the member's data.

    Raises:
        ImageFormatError: When the map is malformed, or of an unknown form.
    """
    if not any(key.startswith(b"GNU.sparse.") for key in records):
        return None
    at = data - _BLOCK
    form = (records.get(b"GNU.sparse.major", b"0"), records.get(b"GNU.sparse.minor", b"0"))
    if form != (b"1", b"0") and form[0] != b"0":
        raise _malformed(f"a map of form {form[0][:9]!r}.{form[1][:9]!r}", at)
    size = _number(records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size", b""), at)
    if form == (b"1", b"0"):
        lines = _lines(read, data, data + stored)
        count, end = next(lines)
        _check_count(count, at)
        numbers = []
        for number, end in islice(lines, 2 * count):  # noqa: B007  # the last one ends the map
            numbers.append(number)
        return _checked(numbers, size, end, data + stored - end, at)
    text = records.get(b"GNU.sparse.map", b"")
    _check_count(text.count(b",") // 2, at)
    return _checked([_number(digits, at) for digits in text.split(b",") if text], size, data, stored, at)


def _lines(read: ReadBlock, position: int, end: int) -> Iterator[tuple[int, int]]:
    """The numbers of form 1.0's map, each with the end of the block that its line ends in."""
    rest, start = b"", position
    while position < end:
        *lines, rest = (rest + read(position)).split(b"\n")
        position += _BLOCK
        for line in lines:
            yield _number(line, start - _BLOCK), position
        if len(rest) > _BLOCK:
            break
    raise _malformed("a map without an end", start - _BLOCK)


def _checked(numbers: list[int], size: int, offset: int, stored: int, header: int) -> Sparse:
    """The map, when its pieces lie one after the other in the file and are what is stored."""
    if len(numbers) % 2 or size < 0:
        raise _malformed("an offset without a length" if size >= 0 else f"a file of {size} bytes", header)
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    _check_count(len(pairs), header)
    end = 0
    for start, length in pairs:
        if start < end or length < 0 or start + length > size:
            raise _malformed(f"a piece of {length} bytes at {start}", header)
        end = start + length
    pieces = tuple(pair for pair in pairs if pair[1])
    if sum(length for _, length in pieces) != stored:
        raise _malformed(f"the pieces are not the {stored} bytes that are stored", header)
    return Sparse(size, pieces, offset, stored)


def _check_count(count: int, offset: int) -> None:
    if count > MAX_PIECES:
        raise _malformed(f"more than {MAX_PIECES} pieces", offset)


def _number(text: bytes, offset: int) -> int:
    if not _DIGITS.fullmatch(text):
        raise _malformed(f"{text[:20]!r} is not a number", offset)
    return int(text)


def _malformed(what: str, offset: int) -> ImageFormatError:
    return ImageFormatError(what, field="tar sparse", offset=offset)


def expanded(pieces: Pieces, size: int) -> Iterable[tuple[bool, int]]:
    """A file from its beginning to its end, as runs: whether the next bytes are stored, and how many they are."""
    at = 0
    for start, length in pieces:
        if start > at:
            yield False, start - at
        yield True, length
        at = start + length
    if size > at:
        yield False, size - at
