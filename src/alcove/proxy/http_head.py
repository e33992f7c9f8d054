"""The heads of an HTTP proxy's messages (RFC 9110 §9.3.6, RFC 9112 §3.2).

Core: bytes in, a request out, and back.

    CONNECT host:port HTTP/1.1              a tunnel; what HTTPS_PROXY makes of https
    GET http://host[:port]/path HTTP/1.1    one plain request; what HTTP_PROXY makes of http
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from alcove.errors import AlcoveError, ProtocolError
from alcove.proxy.rules import Address, Destination, destination

MAX_HEAD: Final = 16384
END: Final = b"\r\n\r\n"
ADDRESS_HEADER: Final = "X-Alcove-Address"
REASON_HEADER: Final = "X-Alcove-Reason"  # clients show the head of a refused CONNECT, and not its body
_HTTP_PORT: Final = 80
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\s]+):([0-9]{1,5})")
_STATUS: Final = re.compile(r"HTTP/1\.[01] ([0-9]{3})(?: .*)?")
_HOP_BY_HOP: Final = {"connection", "proxy-connection", "proxy-authorization", "keep-alive", "te", "upgrade", "host"}
_REASONS: Final = {
    200: "Connection established",
    400: "Bad Request",
    403: "Forbidden",
    502: "Bad Gateway",
    504: "Gateway Timeout",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants; `head` is for the server, and empty when a tunnel is asked for."""

    where: Destination
    head: bytes = b""


def parse_request(head: bytes) -> Request:
    """Read the head of a request, which ends with an empty line.

    Raises:
        ProtocolError: It is none, or its target is not a host and a port.
    """
    lines = _lines(head)
    parts = lines[0].split(" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise ProtocolError("that is not an HTTP request")
    method, target, _ = parts
    if method == "CONNECT":
        return Request(_authority(target))
    if not target.lower().startswith("http://"):
        raise ProtocolError("a proxy takes CONNECT host:port, or http://…", hint="set HTTPS_PROXY and HTTP_PROXY to it")
    return _plain(method, target, lines[1:])


def _plain(method: str, target: str, fields: list[str]) -> Request:
    try:
        url = urlsplit(target)
        port = url.port or _HTTP_PORT
    except ValueError:
        raise ProtocolError("the target of the request is not a URL") from None
    if not url.hostname or url.username is not None:
        raise ProtocolError("the target of the request has no host, or has a user")
    where = _destination(url.hostname, port)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    # one request a connection: what follows on it belongs to no other host
    kept = [f"Host: {url.netloc}", *(line for line in fields if _name(line) not in _HOP_BY_HOP), "Connection: close"]
    return Request(where, "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "", ""]).encode("latin-1"))


def _name(line: str) -> str:
    name, colon, _ = line.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise ProtocolError("a line of the request is not a header")
    return name.lower()


def _authority(text: str) -> Destination:
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ProtocolError("CONNECT takes host:port")
    return _destination(match[1], int(match[2]))


def _destination(host: str, port: int) -> Destination:
    try:
        return destination(host, port)
    except AlcoveError as error:
        raise ProtocolError(error.message) from None


def connect_request(where: Destination) -> bytes:
    """Ask a proxy for a tunnel."""
    return f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode()


def response(status: int, text: str = "", *, address: str | None = None) -> bytes:
    """A proxy's answer.

    Args:
        status: 200 opens a tunnel; anything else is an error, and `text` says which.
        text: For people; one line.
        address: The address that was reached, for those who trust it.
    """
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}"]
    if address is not None:
        lines.append(f"{ADDRESS_HEADER}: {address}")
    body = b"" if status == 200 else f"{text}\n".encode()
    if status != 200:
        lines.append(
            f"{REASON_HEADER}: {''.join(each if each.isascii() and each.isprintable() else '?' for each in text)}"
        )
        lines += ["Content-Type: text/plain; charset=utf-8", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True, slots=True)
class Response:
    """A proxy's answer: its status, and the address that it says it has reached."""

    status: int
    address: Address | None = None


def parse_response(head: bytes) -> Response:
    """Read the head of a proxy's answer.

    Raises:
        ProtocolError: It is none.
    """
    first, *fields = _lines(head)
    match = _STATUS.fullmatch(first)
    if match is None:
        raise ProtocolError("that is not an HTTP response")
    address = None
    for line in fields:
        name, _, value = line.partition(":")
        if name.lower() == ADDRESS_HEADER.lower():
            try:
                address = ipaddress.ip_address(value.strip())
            except ValueError:
                raise ProtocolError(f"{ADDRESS_HEADER} is no address") from None
    return Response(int(match[1]), address)


def _lines(head: bytes) -> list[str]:
    if not head.endswith(END) or len(head) > MAX_HEAD:
        raise ProtocolError("that is not the head of an HTTP message")
    text = head.decode("latin-1")
    if any(ord(each) < 0x20 and each not in "\r\n\t" for each in text):
        raise ProtocolError("the head of the message has control characters")
    lines = text[: -len(END)].split("\r\n")
    if any("\r" in line or "\n" in line for line in lines):
        raise ProtocolError("the head of the message has lines that end in their own way")
    return lines
