"""The few messages of DNS that an enclave's own resolver needs (RFC 1035 §4).

Core: a query in, an answer out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from alcove.errors import ProtocolError

MAX_QUERY: Final = 512  # RFC 1035 §2.3.4
A: Final = 1
_IN: Final = 1
_HEADER: Final = struct.Struct(">6H")  # id flags questions answers authorities additionals
_QUESTION: Final = struct.Struct(">2H")  # type class
_ANSWER: Final = struct.Struct(">3HIH4s")  # a pointer to the name, type, class, ttl, length, address
_POINTER: Final = 0xC00C  # the name right behind the header
_RESPONSE: Final = 0x8000
_OPCODE: Final = 0x7800
_DESIRED: Final = 0x0100  # recursion desired, copied
_AVAILABLE: Final = 0x0080  # recursion available
NO_ERROR: Final = 0
NO_SUCH_NAME: Final = 3
NOT_DONE: Final = 4
TTL: Final = 60


@dataclass(frozen=True, slots=True)
class Query:
    """A question: its name without the dot at the end, its type, and what an answer repeats of it."""

    name: str
    type: int
    id: int
    flags: int
    question: bytes


def parse_query(data: bytes) -> Query:
    """Read a query of one question.

    Raises:
        ProtocolError: It is none.
    """
    if not _HEADER.size < len(data) <= MAX_QUERY:
        raise ProtocolError("dns: that is no query")
    number, flags, questions, *_ = _HEADER.unpack_from(data)
    if flags & _RESPONSE or questions != 1:
        raise ProtocolError("dns: that is no query of one question")
    labels, at = [], _HEADER.size
    while True:
        if at >= len(data):
            raise ProtocolError("dns: the name does not end")
        length = data[at]
        if not length:
            break
        label = data[at + 1 : at + 1 + length]
        if length > 63 or len(label) < length or not label.isascii() or b"." in label:
            raise ProtocolError("dns: a label that cannot be")
        labels.append(label.decode())
        at += 1 + length
    end = at + 1 + _QUESTION.size
    if end > len(data):
        raise ProtocolError("dns: the question does not end")
    kind, group = _QUESTION.unpack_from(data, at + 1)
    if group != _IN:
        raise ProtocolError("dns: not of the Internet")
    return Query(".".join(labels), kind, number, flags, data[_HEADER.size : end])


def answer(query: Query, code: int, address: bytes | None = None) -> bytes:
    """Answer a query.

    Args:
        query: The query.
        code: NO_ERROR, NO_SUCH_NAME or NOT_DONE.
        address: Four bytes, if there is an address.
    """
    if query.flags & _OPCODE:
        code, address = NOT_DONE, None
    flags = _RESPONSE | query.flags & (_OPCODE | _DESIRED) | _AVAILABLE | code
    data = _HEADER.pack(query.id, flags, 1, int(address is not None), 0, 0) + query.question
    if address is not None:
        data += _ANSWER.pack(_POINTER, A, _IN, TTL, len(address), address)
    return data
