"""HTTP/1.1 as a server on the enclave's loopback needs it: requests with a known length, answers likewise.

Core: bytes in, requests out.

The peer is a program in the same enclave, and may be one that an attacker has made to send something. So everything is
limited, and what two readers could understand differently is refused: a repeated header, a folded line, a chunked body
(no AWS SDK sends one to KMS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAX_HEAD: Final = 32768  # bytes of request line and headers; a session token has up to some 4 KiB
MAX_BODY: Final = 1 << 20  # kms.md §1.2
_END_OF_HEAD: Final = b"\r\n\r\n"
_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")  # RFC 9110 §5.6.2, in lower case
_REASONS: Final = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
                   500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


class BadRequestError(Exception):
    """What came is not a request that is served; the connection ends after the answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    """One answer."""

    status: int
    body: bytes
    content_type: str

    def encode(self, *, keep_alive: bool) -> bytes:
        """Its bytes."""
        headers = {
            "content-type": self.content_type,
            "content-length": str(len(self.body)),
            "cache-control": "no-store",
            "connection": "keep-alive" if keep_alive else "close",
        }
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Error')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode("latin-1") + _END_OF_HEAD + self.body


class RequestReader:
    """Collects the requests of one connection.

    Use: `receive(chunk)`; then `next_request()` until it returns None. `expects_continue` tells that the peer waits
    for `100 Continue` before it sends the body.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str], bool] | None = None
        self.expects_continue = False

    @property
    def untouched(self) -> bool:
        """Whether nothing of a next request has come."""
        return not self._buffer and self._head is None

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        self._buffer += data

    def next_request(self) -> Request | None:
        """The next request, or None while it is not whole.

        Raises:
            BadRequestError: It is none that is served.
        """
        if self._head is None:
            end = self._buffer.find(_END_OF_HEAD, 0, MAX_HEAD)
            if end < 0:
                if len(self._buffer) > MAX_HEAD:
                    raise BadRequestError("the head is too long")
                return None
            self._head = _parse_head(bytes(self._buffer[:end]))
            del self._buffer[: end + len(_END_OF_HEAD)]
            self.expects_continue = self._head[2].get("expect", "").lower() == "100-continue"
        method, target, headers, keep_alive = self._head
        size = _length(headers)
        if len(self._buffer) < size:
            return None
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._head, self.expects_continue = None, False
        return Request(method, target, headers, body, keep_alive)


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str], bool]:
    line, *lines = head.decode("latin-1").split("\r\n")
    parts = line.split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0") or not parts[1].startswith("/"):
        raise BadRequestError("not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for text in lines:
        name, colon, value = text.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if not colon or not name or not _TOKEN.issuperset(name) or not all(c == "\t" or c.isprintable() for c in value):
            raise BadRequestError("a header is malformed")
        if name in headers:
            raise BadRequestError(f"the header {name} is there twice")
        headers[name] = value
    keep_alive = parts[2] == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return parts[0], parts[1], headers, keep_alive


def _length(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise BadRequestError("a body must have a content-length")
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdecimal()) or len(text) > 8 or int(text) > MAX_BODY:
        raise BadRequestError("the content-length is none, or too large")
    return int(text)
