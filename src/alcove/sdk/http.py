"""HTTP/1.1 as a client of KMS needs it: one request, one answer, then the connection ends.

Core: bytes in, an answer out.

The standard library's client brings the e-mail package along, which a guest under emulation pays for in tenths of a
second at every start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from alcove.errors import ProtocolError

MAX_HEAD: Final = 16384  # bytes of status line and headers; KMS sends about 300
MAX_BODY: Final = 1 << 20  # KMS's own limit for requests (kms.md §1.2)
_END_OF_HEAD: Final = b"\r\n\r\n"


class Answer(NamedTuple):
    """A complete answer."""

    status: int
    body: bytes


def encode_post(headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a POST to `/`; `content-length` and `connection: close` are added.

    Raises:
        ValueError: A header has characters that would break the framing.
    """
    lines = ["POST / HTTP/1.1"]
    for name, value in (*headers.items(), ("content-length", str(len(body))), ("connection", "close")):
        if not value.isprintable() or not value.isascii():
            raise ValueError(f"the header {name} has characters that cannot be sent")
        lines.append(f"{name}: {value}")
    return "\r\n".join(lines).encode() + _END_OF_HEAD + body


class AnswerReader:
    """Collects the bytes of one answer.

    Use: `receive(chunk)` until it returns an `Answer`; an empty chunk is the end of the stream.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._status = 0
        self._length: int | None = None
        self._chunked = False

    @property
    def untouched(self) -> bool:
        """Whether nothing has been received."""
        return not self._buffer and not self._status

    def receive(self, data: bytes) -> Answer | None:
        """Take what was read; returns the answer when it is complete.

        Raises:
            ProtocolError: It is not an HTTP/1.1 answer within the limits, or the stream ended too early.
        """
        self._buffer += data
        if not self._status and not self._take_head():
            self._limit(MAX_HEAD, data)
            return None
        body = self._dechunked() if self._chunked else self._plain(at_end=not data)
        if body is None:
            self._limit(2 * MAX_BODY, data)
            return None
        if len(body) > MAX_BODY:
            raise ProtocolError("the server's answer is too long")
        return Answer(self._status, body)

    def _limit(self, limit: int, data: bytes) -> None:
        if len(self._buffer) > limit:
            raise ProtocolError("the server's answer is too long")
        if not data:
            raise ProtocolError("the server closed the connection before its answer was complete")

    def _take_head(self) -> bool:
        while True:
            end = self._buffer.find(_END_OF_HEAD)
            if end < 0:
                return False
            status_line, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
            del self._buffer[: end + len(_END_OF_HEAD)]
            version, _, rest = status_line.partition(" ")
            if version not in ("HTTP/1.1", "HTTP/1.0") or not (rest[:3].isascii() and rest[:3].isdecimal()):
                raise ProtocolError("the server does not speak HTTP/1.1")
            status = int(rest[:3])
            if status >= 200:  # RFC 9110 §15.2: 1xx come before the answer
                break
        self._status = status
        self._frame({name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)})
        return True

    def _frame(self, headers: Mapping[str, str]) -> None:
        """How the body ends (RFC 9112 §6.3)."""
        coding = headers.get("transfer-encoding")
        length = headers.get("content-length")
        if coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise ProtocolError("the server's answer has an unknown framing")
            self._chunked = True
        elif length is not None:
            if not (length.isascii() and length.isdecimal()) or int(length) > MAX_BODY:
                raise ProtocolError("the server's answer has a bad content-length")
            self._length = int(length)

    def _plain(self, *, at_end: bool) -> bytes | None:
        if self._length is None:
            return bytes(self._buffer) if at_end else None
        return bytes(self._buffer[: self._length]) if len(self._buffer) >= self._length else None

    def _dechunked(self) -> bytes | None:
        """The body of all chunks (RFC 9112 §7.1), or None while some are missing; trailers are ignored."""
        body, at = bytearray(), 0
        while (end := self._buffer.find(b"\r\n", at)) >= 0:
            try:
                size = int(self._buffer[at:end].split(b";")[0], 16)
            except ValueError:
                raise ProtocolError("the server's answer has a bad chunk") from None
            if size == 0:
                done = self._buffer.startswith(b"\r\n", end + 2) or self._buffer.find(_END_OF_HEAD, end) >= 0
                return bytes(body) if done else None
            if size < 0 or size > MAX_BODY:
                raise ProtocolError("the server's answer has a bad chunk")
            body += self._buffer[end + 2 : end + 2 + size]
            at = end + 2 + size + 2
            if not b"\r\n".startswith(bytes(self._buffer[at - 2 : at])):
                raise ProtocolError("the server's answer has a bad chunk")
        return None
