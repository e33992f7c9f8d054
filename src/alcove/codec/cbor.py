"""CBOR (RFC 8949): a strict decoder and a small encoder.

Core: bytes in, values out; values in, bytes out.

    unsigned, negative   int                array   list
    byte string          bytes              map     dict (keys: int, str or bytes)
    text string          str                tag     Tag(number, value)
    false, true, null    bool, None         float   float (decoded only)
    undefined and other simple values       Simple(number)

The decoder takes hostile input (attestation.md §5.2 step 4): it reads exactly one item, refuses what follows it,
refuses duplicate keys, reserved lengths and stray breaks, and compares every declared length with the bytes that are
left before it allocates. Items of indefinite length and integers in longer forms than needed are valid CBOR and
accepted.

The encoder writes definite lengths and shortest forms, and keeps the order of a dict: attestation documents are not in
deterministic order (attestation.md §2). `Uint64` forces the eight-byte form of an integer.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

MAX_DEPTH: Final = 16  # attestation.md §5.2 step 4: "a fixed limit (e.g. 16)"

_HEAD16: Final = struct.Struct(">BH")
_HEAD32: Final = struct.Struct(">BI")
_HEAD64: Final = struct.Struct(">BQ")
_FLOATS: Final = {25: ">e", 26: ">f", 27: ">d"}  # RFC 8949 §3.3, by additional information
_ARGUMENTS: Final = {  # RFC 8949 §3, by additional information
    info: struct.Struct(form) for info, form in ((24, ">B"), (25, ">H"), (26, ">I"), (27, ">Q"))
}
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF
_KEPT: Final = 64  # arguments whose heads are made beforehand: registers, digests and short texts
_HEADS: Final = tuple(
    tuple(bytes((major << 5 | n,)) if n < 24 else bytes((major << 5 | 24, n)) for n in range(_KEPT))
    for major in range(8)
)
_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)  # RFC 8949 §3.1, major types


class CborError(ValueError):
    """Bytes that are not one CBOR item as this module takes it; `offset` says where."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (at offset {offset})")
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Tag:
    """A tagged item (major type 6)."""

    number: int
    value: object


@dataclass(frozen=True, slots=True)
class Simple:
    """A simple value other than false, true and null; 23 is undefined."""

    number: int


class Uint64(int):
    """An integer that is always encoded as `1b` and eight bytes (attestation.md §2, timestamp)."""


def decode(data: bytes, *, max_depth: int = MAX_DEPTH) -> object:
    """The one item that `data` holds.

    Args:
        data: One CBOR item and nothing else.
        max_depth: How deep arrays, maps and tags may nest.

    Raises:
        CborError: For anything else.
    """
    value, end = decode_prefix(data, max_depth=max_depth)
    if end != len(data):
        raise CborError(f"{len(data) - end} bytes follow the item", end)
    return value


def decode_prefix(data: bytes, *, max_depth: int = MAX_DEPTH) -> tuple[object, int]:
    """The item that `data` begins with, and the offset at which it ends; errors as in `decode`."""
    return _item(bytes(data), 0, max_depth)


def decode_pairs(data: bytes, count: int, at: int) -> tuple[dict[int | str | bytes, object], int]:
    """So many pairs of the outermost map, whose first one begins at offset `at`, and the offset at which they end.

    The caller has read the map's head, and sees to it that no key is in what it reads otherwise; errors as in `decode`.
    """
    return _map(data, count, at, MAX_DEPTH - 1)


def _item(data: bytes, at: int, depth: int) -> tuple[object, int]:
    try:
        first = data[at]
    except IndexError:
        raise CborError("the input ends where an item must begin", at) from None
    major, length, start = first >> 5, first & 31, at + 1
    if major == _SIMPLE:
        return _simple(data, at, length)
    if length >= 24:
        length, start = _argument(data, at, major, length)
    if major == _UINT:
        return length, start
    if _BYTES <= major <= _TEXT:
        content = data[start : start + length]
        if len(content) != length:
            return _string(data, at, major, length, start)
        return (content if major == _BYTES else _text(content, start)), start + length
    if major == _NEGATIVE:
        return -1 - length, start
    if depth <= 0:
        raise CborError("the items nest too deep", at)
    if major == _ARRAY:
        return _array(data, length, start, depth - 1)
    if major == _MAP:
        return _map(data, length, start, depth - 1)
    value, end = _item(data, start, depth - 1)
    return Tag(length, value), end


def _argument(data: bytes, at: int, major: int, info: int) -> tuple[int, int]:
    """The argument, from 24, of the head at `at` (-1: indefinite length), and the offset after it."""
    if info == _INDEFINITE and _BYTES <= major <= _MAP:
        return -1, at + 1
    form = _ARGUMENTS.get(info)
    if form is None:
        raise CborError(f"reserved additional information {info}", at)
    try:
        return form.unpack_from(data, at + 1)[0], at + 1 + form.size
    except struct.error:
        raise CborError("the input ends inside a head", at) from None


def _simple(data: bytes, at: int, info: int) -> tuple[object, int]:
    if 20 <= info <= 22:
        return (False, True, None)[info - 20], at + 1
    if info < 24:
        return Simple(info), at + 1
    if info == _INDEFINITE:
        raise CborError("a break where an item must begin", at)
    number, end = _argument(data, at, _SIMPLE, info)
    if info in _FLOATS:
        return struct.unpack_from(_FLOATS[info], data, at + 1)[0], end
    if number < 32:  # RFC 8949 §3.3: not well-formed
        raise CborError(f"simple value {number} in two bytes", at)
    return Simple(number), end


def _string(data: bytes, at: int, major: int, length: int, start: int) -> tuple[object, int]:
    """A string that `_item` does not read itself: of indefinite length, or longer than what is left."""
    if length >= 0:
        raise CborError(f"a string of {length} bytes where {len(data) - start} are left", at)
    chunks: list[object] = []
    while not _at_break(data, start):
        if data[start] >> 5 != major or data[start] & 31 == _INDEFINITE:
            raise CborError("a chunk of another type in a string of indefinite length", start)
        chunk, start = _item(data, start, 0)
        chunks.append(chunk)
    joiner = "" if major == _TEXT else b""
    return joiner.join(chunks), start + 1  # type: ignore[arg-type]  # all chunks are of the major type


def _text(content: bytes, at: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CborError("text that is not UTF-8", at + error.start) from None


def _at_break(data: bytes, at: int) -> bool:
    if at >= len(data):
        raise CborError("the break of an item of indefinite length is missing", at)
    return data[at] == _BREAK


def _array(data: bytes, count: int, at: int, depth: int) -> tuple[list[object], int]:
    if count > len(data) - at:  # an item takes a byte at least
        raise CborError(f"an array of {count} items where {len(data) - at} bytes are left", at)
    items: list[object] = []
    left = count
    while left > 0 or (count < 0 and not _at_break(data, at)):
        left -= 1
        value, at = _item(data, at, depth)
        items.append(value)
    return items, at + (count < 0)


def _map(data: bytes, count: int, at: int, depth: int) -> tuple[dict[int | str | bytes, object], int]:
    if count * 2 > len(data) - at:
        raise CborError(f"a map of {count} pairs where {len(data) - at} bytes are left", at)
    pairs: dict[int | str | bytes, object] = {}
    left = count
    while left > 0 or (count < 0 and not _at_break(data, at)):
        left -= 1
        key, value_at = _item(data, at, depth)
        # Not bool or float: Python holds True, 1 and 1.0 for the same key.
        if type(key) is not str and type(key) is not int and type(key) is not bytes:
            raise CborError("a map key that is neither an integer nor a string", at)
        if key in pairs:
            raise CborError(f"the map key {key!r:.40} occurs twice", at)
        pairs[key], at = _item(data, value_at, depth)
    return pairs, at + (count < 0)


NULL: Final = b"\xf6"


def encode(obj: object) -> bytes:
    """The CBOR of None, bool, int, `Uint64`, bytes, str, list, tuple, dict, `Tag` and `Simple`.

    Raises:
        TypeError: For another type, at any depth.
        ValueError: For an integer of more than 64 bits.
    """
    out = bytearray()
    _encode(obj, out)
    return bytes(out)


def _encode(obj: object, out: bytearray) -> None:
    # exactly these types make up nearly all of a message; what derives from them is left to what follows
    kind = type(obj)
    if kind is bytes or kind is str:
        content: bytes = obj if kind is bytes else obj.encode()  # type: ignore[assignment, attr-defined]
        out += head(_BYTES if kind is bytes else _TEXT, len(content))
        out += content
    elif kind is dict:
        out += head(_MAP, len(obj))  # type: ignore[arg-type]
        for key, value in obj.items():  # type: ignore[attr-defined]
            _encode(key, out)
            _encode(value, out)
    else:
        _encode_other(obj, out)


def _encode_other(obj: object, out: bytearray) -> None:
    if obj is None:
        out.append(0xF6)
    elif isinstance(obj, bool):
        out.append(0xF5 if obj else 0xF4)
    elif isinstance(obj, Uint64):
        out += _HEAD64.pack(27, _bounded(obj))
    elif isinstance(obj, int):
        out += head(_UINT, obj) if obj >= 0 else head(_NEGATIVE, -1 - obj)
    elif isinstance(obj, bytes | bytearray | memoryview):
        out += head(_BYTES, len(obj))
        out += obj
    elif isinstance(obj, str):
        content = obj.encode()
        out += head(_TEXT, len(content))
        out += content
    else:
        _encode_compound(obj, out)


def _encode_compound(obj: object, out: bytearray) -> None:
    if isinstance(obj, list | tuple):
        out += head(_ARRAY, len(obj))
        for item in obj:
            _encode(item, out)
    elif isinstance(obj, dict):
        out += head(_MAP, len(obj))
        for key, value in obj.items():
            _encode(key, out)
            _encode(value, out)
    elif isinstance(obj, Tag):
        out += head(_TAG, obj.number)
        _encode(obj.value, out)
    elif isinstance(obj, Simple):
        out += head(_SIMPLE, obj.number)
    else:
        raise TypeError(f"no CBOR for {type(obj).__name__}")


def head(major: int, argument: int) -> bytes:
    """The shortest head of an item: major type and argument (RFC 8949 §3)."""
    if 0 <= argument < _KEPT:
        return _HEADS[major][argument]
    first = major << 5
    if 0 <= argument < 0x100:
        return bytes((first | 24, argument))
    if 0 <= argument < 0x10000:
        return _HEAD16.pack(first | 25, argument)
    if 0 <= argument < 0x1_0000_0000:
        return _HEAD32.pack(first | 26, argument)
    return _HEAD64.pack(first | 27, _bounded(argument))


def _bounded(number: int) -> int:
    if not 0 <= number < 1 << 64:
        raise ValueError(f"an integer of more than 64 bits: {number}")
    return number
