"""p11-kit's messages: frames, calls and their arguments (acm.md §6): read beside write.

Core: bytes in, calls out, and back; the sender is hostile.

A conversation is one byte each way, the version, and then frames: a call code that the answer repeats, the lengths of
options and body, both of them. Options are the module's name and are passed over; a body is a call's number, its
signature and its arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from alcove.apps.acm import values
from alcove.apps.acm.calls import CALLS, ERROR, Call
from alcove.apps.acm.cryptoki import Ckr, Refused
from alcove.apps.acm.values import NULL, Reader, Size, put_octets
from alcove.errors import ProtocolError

VERSION: Final = 2  # acm.md §6.1: what p11-kit 0.25.6 and later offer
NEW_MECHANISMS: Final = 2  # clients that offer it encode mechanisms anew, whatever was agreed
HANDSHAKE: Final = b"PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1"
MAX_OPTIONS: Final = 1024
MAX_BODY: Final = 1 << 17  # bytes; a caller that hashes more does it in parts
MAX_COUNT: Final = 4096  # of handles in one array
_HEADER: Final = struct.Struct(">III")  # call code, length of options, length of body
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")


class Frame(NamedTuple):
    """A message in its envelope."""

    code: int
    body: bytes
    options: bytes = b""

    def pack(self) -> bytes:
        """The bytes of the frame."""
        return _HEADER.pack(self.code, len(self.options), len(self.body)) + self.options + self.body


class FrameReader:
    """Collects the bytes of one side: the version byte first, then frames.

    Args:
        max_body: The longest body that is taken, in bytes.

    Attributes:
        version: What the other side offered; None until it has come.
    """

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self._buffer, self._max_body = bytearray(), max_body
        self.version: int | None = None

    @property
    def amid(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def receive(self, data: bytes) -> list[Frame]:
        """Take what was read; returns the frames that are complete.

        Raises:
            ProtocolError: A length is beyond the limits, or the call code is 0.
        """
        buffer = self._buffer
        buffer += data
        if self.version is None and buffer:
            self.version = buffer[0]
            del buffer[:1]
        frames = []
        while len(buffer) >= _HEADER.size:
            code, options, body = _HEADER.unpack_from(buffer)
            if not code or options > MAX_OPTIONS or body > self._max_body:
                raise ProtocolError(f"a frame with code {code}, {options} bytes of options and {body} of body")
            start = _HEADER.size + options
            if len(buffer) < start + body:
                break
            frames.append(Frame(code, bytes(buffer[start : start + body]), bytes(buffer[_HEADER.size : start])))
            del buffer[: start + body]
        return frames


class Request(NamedTuple):
    """A call with its arguments."""

    call: Call
    arguments: tuple[Any, ...]


def parse_request(body: bytes, *, new: bool) -> Request:
    """The call in a body.

    Args:
        body: A frame's.
        new: How mechanisms are encoded; see `values.read_mechanism`.

    Raises:
        ProtocolError: It is malformed: the connection cannot go on.
        Refused: It is whole, and a call or a mechanism that is not known.
    """
    reader = Reader(body)
    number, signature = reader.u32(), reader.octets()
    call = CALLS.get(number)
    if call is None:
        if number == ERROR:
            raise ProtocolError("an error is no call")
        raise Refused(Ckr.FUNCTION_NOT_SUPPORTED)  # of a newer p11-kit
    if signature != call.request.encode():
        raise ProtocolError(f"{call.name} with the signature {signature!r:.40}")
    arguments = _read_all(call.request, reader, new=new)
    reader.finish()
    return Request(call, arguments)


def parse_response(body: bytes, call: Call) -> tuple[Any, ...]:
    """The results of a call; what a client reads.

    Raises:
        ProtocolError: It is malformed, or the answer to another call.
        Refused: The call failed.
    """
    reader = Reader(body)
    number, signature = reader.u32(), reader.octets()
    if number == ERROR and signature == b"u":
        code = reader.u64()
        reader.finish()
        raise Refused(Ckr(code) if code in set(Ckr) else Ckr.GENERAL_ERROR)
    if number != call.id or signature != call.response.encode():
        raise ProtocolError(f"an answer {number} {signature!r:.40} to {call.name}")
    results = _read_all(call.response, reader, new=False)
    reader.finish()
    return results


def pack_request(call: Call, arguments: Sequence[Any], *, new: bool) -> bytes:
    """The body of a request."""
    return _head(call.id, call.request) + _put_all(call.request, arguments, new=new)


def pack_response(call: Call, results: Sequence[Any]) -> bytes:
    """The body of a good answer."""
    return _head(call.id, call.response) + _put_all(call.response, results, new=False)


@cache
def pack_error(ckr: Ckr) -> bytes:
    """The body of an answer that says why not."""
    return _head(ERROR, "u") + _U64.pack(ckr)


@cache
def _head(number: int, signature: str) -> bytes:
    return _U32.pack(number) + put_octets(signature.encode())


@cache
def parts(signature: str) -> tuple[str, ...]:
    """The letters of a signature, with their prefixes: `uayfy` is u, ay, fy."""
    found, prefix = [], ""
    for letter in signature:
        if letter in "af" and not prefix:
            prefix = letter
        else:
            found.append(prefix + letter)
            prefix = ""
    return tuple(found)


def _read_all(signature: str, reader: Reader, *, new: bool) -> tuple[Any, ...]:
    return tuple(
        [values.read_mechanism(reader, new=new) if part == "M" else _READ[part](reader) for part in parts(signature)]
    )


def _put_all(signature: str, items: Sequence[Any], *, new: bool) -> bytes:
    pairs = zip(parts(signature), items, strict=True)
    return b"".join([values.put_mechanism(item, new=new) if part == "M" else _PUT[part](item) for part, item in pairs])


def _read_bytes(reader: Reader) -> bytes | Size | None:
    """`ay`: bytes, a NULL pointer, or a length alone."""
    return reader.octets() if _flag(reader) else Size(reader.u32())


def _put_bytes(item: bytes | Size | None) -> bytes:
    return b"\0" + _U32.pack(item.length) if isinstance(item, Size) else b"\1" + put_octets(item)


def _read_ulongs(reader: Reader) -> tuple[int, ...] | Size:
    """`au`: numbers, or how many there are."""
    if not _flag(reader):
        return Size(reader.u32())
    count = reader.u32()
    if count > MAX_COUNT:
        raise ProtocolError(f"an array of {count} numbers")
    return tuple([reader.u64() for _ in range(count)])


def _put_ulongs(item: tuple[int, ...] | Size) -> bytes:
    if isinstance(item, Size):
        return b"\0" + _U32.pack(item.length)
    return b"\1" + _U32.pack(len(item)) + b"".join(map(_U64.pack, item))


def _read_space(reader: Reader) -> int | None:
    """`fy`, `fu`: room for an answer; None is a NULL pointer, 0 one that leads to no room (0.25 and later)."""
    size = reader.u32()
    return None if size == 0 else 0 if size == NULL else size


def _put_space(item: int | None) -> bytes:
    return _U32.pack(0 if item is None else item or NULL)


def _flag(reader: Reader) -> bool:
    flag = reader.byte()
    if flag > 1:
        raise ProtocolError(f"an array is valid or not, and not {flag} (at offset {reader.at - 1})")
    return bool(flag)


_READ: Final[dict[str, Callable[[Reader], Any]]] = {
    "y": Reader.byte,
    "u": Reader.u64,
    "v": lambda reader: tuple(reader.take(2)),
    "s": Reader.octets,
    "z": Reader.octets,
    "ay": _read_bytes,
    "au": _read_ulongs,
    "fy": _read_space,
    "fu": _read_space,
    "aA": values.read_attributes,
    "fA": values.read_rooms,
}
_PUT: Final[dict[str, Callable[[Any], bytes]]] = {
    "y": lambda item: bytes([item]),
    "u": _U64.pack,
    "v": bytes,
    "s": put_octets,
    "z": put_octets,
    "ay": _put_bytes,
    "au": _put_ulongs,
    "fy": _put_space,
    "fu": _put_space,
    "aA": values.put_attributes,
    "fA": values.put_rooms,
}
