"""One client's connection: HTTP/1.1 by httptools, one request at a time, everything bounded.

What a client sends is bounded in size and in time, whatever it is: a head, a body, a request that never ends, answers
that it does not take. What is not HTTP gets a 400, what is too large a 413 or 431, what is too slow a 408, and the
connection ends with it. Requests may be pipelined: they wait, and nothing more is read, while one is being answered.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from typing import Any, Final, Protocol

import httptools

from alcove.kms.call import Answer, Peer
from alcove.kms.claim import SignedRequest
from alcove.kms.errors import KmsError

MAX_HEAD_BYTES: Final = 65_536  # all but the body; an attestation document in a header has 32 KiB; one packet more
MAX_BODY_BYTES: Final = 1 << 20  # kms.md §1.2
MAX_HEADERS: Final = 100
MAX_KEPT_NAME: Final = 64
MAX_KEPT_NAMES: Final = 1024
MAX_USER_AGENT: Final = 512
REQUEST_TIME: Final = 30.0  # seconds for a whole request to come, and for an answer to be taken
KEEP_ALIVE: Final = 65.0  # seconds; longer than botocore's 60 for an idle connection
LINGER: Final = 2.0  # seconds in which a refused client can read its answer, while what it still sends is thrown away
_NEVER: Final = float("inf")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS: Final = {
    200: b"HTTP/1.1 200 OK",
    400: b"HTTP/1.1 400 Bad Request",
    403: b"HTTP/1.1 403 Forbidden",
    404: b"HTTP/1.1 404 Not Found",
    408: b"HTTP/1.1 408 Request Timeout",
    413: b"HTTP/1.1 413 Content Too Large",
    431: b"HTTP/1.1 431 Request Header Fields Too Large",
    500: b"HTTP/1.1 500 Internal Server Error",
    503: b"HTTP/1.1 503 Service Unavailable",
}

Respond = Callable[[Answer], None]


class Face(Protocol):
    """What answers requests."""

    def handle(self, request: SignedRequest, peer: Peer, respond: Respond) -> None:
        """Has `respond` called once, now or later, in the event loop."""
        ...


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        face: Answers its requests.
        everyone: The connections of the server; this one is among them while it is open.
        secure: Whether TLS is around it.
    """

    def __init__(self, face: Face, everyone: set[Connection], *, secure: bool) -> None:
        self._face = face
        self._everyone = everyone
        self._clock = asyncio.get_running_loop().time
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._peer = Peer("", "", secure)
        self._ready: deque[tuple[SignedRequest, bool]] = deque()  # whole requests, and whether the client keeps alive
        self._held = b""  # came while a request was being answered
        self._busy = self._ending = self._lingering = self._full = False
        self.deadline = _NEVER
        self.on_message_begin()

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._peer = replace(self._peer, address=_address(str(peer[0])) if isinstance(peer, tuple) and peer else "")
        self._everyone.add(self)
        self.deadline = self._clock() + REQUEST_TIME

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        del exc
        self._everyone.discard(self)
        self._ending = True
        self._ready.clear()
        self._held = b""

    def data_received(self, data: bytes) -> None:
        """Bytes came; while a request is being answered they wait, and no more are read."""
        if self._lingering:
            return
        if self._busy:
            self._held += data
            self._transport.pause_reading()
            return
        if not self._begun:
            self.deadline = self._clock() + REQUEST_TIME
        self._feed(data)

    def eof_received(self) -> bool:
        """The client sends no more; an answer in the making is still given."""
        self._ending = True
        return self._busy

    def pause_writing(self) -> None:
        """The client does not take its answers."""
        self._full = True
        self.deadline = self._clock() + REQUEST_TIME

    def resume_writing(self) -> None:
        """It does again."""
        self._full = False
        self._go_on()

    # what the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        self._size = self._head = 0
        self._in_head = True
        self._begun = self._transport is not None

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; those that come after a body mean nothing here."""
        if not self._in_head:
            return
        known = _names.get(name) or _named(name)
        self._headers.append((known, value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """The body comes next."""
        self._in_head = False
        if ("expect", "100-continue") in self._headers:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._size += len(body)
        if self._size <= MAX_BODY_BYTES:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._begun = False
        if self._size > MAX_BODY_BYTES:
            return
        path, _, query = self._url.decode("latin-1").partition("?")
        method = self._parser.get_method().decode("latin-1")
        request = SignedRequest(method, path, query, tuple(self._headers), b"".join(self._body))
        self._ready.append((request, self._parser.should_keep_alive()))

    # what the server calls

    def expire(self) -> None:
        """The deadline has passed: an answer for whoever is in the middle of a request, and the end for everyone."""
        if self._begun and not self._lingering and not self._full:
            self._refuse(408, "RequestTimeoutException", "the request took too long")
        else:
            self._transport.abort()

    def end(self) -> None:
        """No request after the one that is being answered."""
        self._ending = True
        self._ready.clear()
        if not self._busy and not self._lingering:
            self._transport.close()

    def abort(self) -> None:
        """Ends at once."""
        self._transport.abort()

    # the rest is its own

    def _feed(self, data: bytes) -> None:
        in_head, size = self._in_head, self._size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # what was upgraded to would not be HTTP/1.1
            self._ready.clear()
            self._refuse(400, "ValidationException", "the connection cannot be upgraded")
            return
        except httptools.HttpParserError:
            self._ready.clear()
            self._refuse(400, "SerializationException", "this is not an HTTP request")
            return
        if self._begun and self._size == size and self._in_head is in_head:  # chunks' extensions, trailers: as a head
            self._head += len(data)
        if self._size > MAX_BODY_BYTES:
            self._refuse(413, "RequestEntityTooLargeException", f"a body has at most {MAX_BODY_BYTES} bytes")
        elif self._head > MAX_HEAD_BYTES or len(self._headers) > MAX_HEADERS:
            self._refuse(431, "ValidationException", "the head of the request is too large")
        else:
            self._go_on()

    def _go_on(self) -> None:
        """The next request, if there is one and there is nothing to wait for."""
        if self._busy or self._full or self._lingering:
            return
        if self._ready:
            self._busy = True
            self.deadline = _NEVER
            request, keeps = self._ready.popleft()
            self._ending = self._ending or not keeps
            agent = (request.value("user-agent") or "")[:MAX_USER_AGENT]
            if agent != self._peer.user_agent:
                self._peer = replace(self._peer, user_agent=agent)
            self._face.handle(request, self._peer, self._respond)
        elif self._ending:
            self._transport.close()
        elif self._held:
            held, self._held = self._held, b""
            self._transport.resume_reading()
            self.data_received(held)

    def _respond(self, answer: Answer) -> None:
        self._busy = False
        if self._transport.is_closing():
            return
        last = self._ending and not self._ready
        self._transport.write(encoded(answer, last=last))
        self.deadline = self._clock() + (REQUEST_TIME if self._full or self._begun else KEEP_ALIVE)
        if last:
            self._transport.close()
        elif self._ready or self._held:
            self._go_on()

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """Answers what is no request, and ends the connection without a reset that could swallow the answer."""
        self._transport.write(encoded(Answer(status, KmsError(kind, message).body(), ""), last=True))
        self._lingering = True
        self.deadline = self._clock() + LINGER
        if self._transport.can_write_eof():
            self._transport.write_eof()


def _address(text: str) -> str:
    """An address as policies compare it: IPv4 by its own name also where IPv6 accepts it, and without an interface."""
    mapped = text.removeprefix("::ffff:")
    return mapped if "." in mapped else text.partition("%")[0]


_names: dict[bytes, str] = {}


def _named(name: bytes) -> str:
    """A header's name in lower case; those of usual length are kept, as clients write them."""
    known = name.decode("latin-1").lower()
    if len(_names) >= MAX_KEPT_NAMES:
        _names.clear()
    if len(name) <= MAX_KEPT_NAME:
        _names[name] = known
    return known


def encoded(answer: Answer, *, last: bool) -> bytes:
    """An answer as it is sent."""
    return b"".join((
        _STATUS[answer.status],
        b"\r\ndate: ", _date(int(time.time())),
        b"\r\ncontent-type: ", answer.content_type.encode(),
        b"\r\ncontent-length: %d\r\ncache-control: no-store" % len(answer.body),
        b"\r\nx-amzn-requestid: " + answer.request_id.encode() if answer.request_id else b"",
        b"\r\nconnection: close\r\n\r\n" if last else b"\r\n\r\n",
        answer.body,
    ))  # fmt: skip


_dates: dict[int, bytes] = {}


def _date(second: int) -> bytes:
    """The Date header of a second, made once in it."""
    if second not in _dates:
        _dates.clear()
        _dates[second] = formatdate(second, usegmt=True).encode()
    return _dates[second]
