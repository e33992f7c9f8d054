"""The provisioning protocol's messages (acm.md §4): one request a connection, HTTP-like, exact to the byte.

Core: bytes in, JSON out, and back.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from alcove.errors import ProtocolError

RPC_PORT: Final = 10000
MAX_HEAD: Final = 1024
MAX_BODY: Final = 64 * 1024
_REQUEST_LINE: Final = b"POST /rpc/v1 HTTP/1.1\r\n"
_STATUS_LINE: Final = b"200 OK\r\n"  # without HTTP's version
_HEADERS: Final = re.compile(rb"Content-Type: application/json\r\nContent-Length: ([0-9]{1,6})\r\n\r\n")
_END: Final = b"\r\n\r\n"


class BodyReader:
    """Collects one message.

    Args:
        first_line: What it begins with.
    """

    def __init__(self, first_line: bytes) -> None:
        self._first_line = first_line
        self._buffer = bytearray()
        self._length: int | None = None

    def receive(self, data: bytes) -> Any:
        """Take what was read; the JSON when it is complete, and `...` before that.

        Raises:
            ProtocolError: It is not such a message, or beyond the limits.
        """
        self._buffer += data
        if self._length is None and not self._take_head():
            return ...
        assert self._length is not None  # noqa: S101 - the head told it
        if len(self._buffer) < self._length:
            return ...
        if len(self._buffer) > self._length:
            raise ProtocolError("bytes follow the message")
        try:
            return json.loads(self._buffer)
        except (ValueError, RecursionError):
            raise ProtocolError("the body is not JSON") from None

    def _take_head(self) -> bool:
        end = self._buffer.find(_END)
        if end < 0 and len(self._buffer) <= MAX_HEAD:
            return False
        if end < 0 or end > MAX_HEAD:
            raise ProtocolError("the head is too long")
        head = bytes(self._buffer[: end + len(_END)])
        headers = _HEADERS.fullmatch(head, len(self._first_line))
        if not head.startswith(self._first_line) or headers is None or int(headers[1]) > MAX_BODY:
            raise ProtocolError("the head is not that of a message")
        self._length = int(headers[1])
        del self._buffer[: len(head)]
        return True


def request_reader() -> BodyReader:
    """Reads a request."""
    return BodyReader(_REQUEST_LINE)


def reply_reader() -> BodyReader:
    """Reads a reply."""
    return BodyReader(_STATUS_LINE)


def pack_request(request: Any) -> bytes:
    """A request's bytes."""
    return _REQUEST_LINE + _rest(request)


def pack_reply(reply: Any) -> bytes:
    """A reply's bytes."""
    return _STATUS_LINE + _rest(reply)


def _rest(message: Any) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
