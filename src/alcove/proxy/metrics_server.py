"""Answers Prometheus on a TCP port of this machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from alcove.errors import MachineError
from alcove.proxy.metrics import Counters, exposition
from alcove.proxy.ports import Mapping

MAX_HEAD: Final = 8192
SECONDS: Final = 5.0  # for a whole exchange
LOOPBACK: Final = "127.0.0.1"


@asynccontextmanager
async def metrics_on(where: Mapping | None, counters: Callable[[], Iterable[Counters]]) -> AsyncIterator[None]:
    """Answer `GET /metrics` there for as long as the block lasts; nowhere when there is no `where`.

    Raises:
        MachineError: The port cannot be had.
    """
    if where is None:
        yield
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(response(head, counters()))
                await writer.drain()
        except (OSError, EOFError, asyncio.LimitOverrunError):  # EOFError: a head that ends early
            pass
        finally:
            writer.close()

    host = where.host or LOOPBACK
    try:
        server = await asyncio.start_server(answer, host, where.port, limit=MAX_HEAD)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # asyncio's own words name the address again
        raise MachineError(f"cannot listen on {host} port {where.port}: {reason}") from None
    async with server:
        yield


def response(head: bytes, counters: Iterable[Counters]) -> bytes:
    """The answer to a request."""
    found = head.split(b" ", 2)[:2] in ([b"GET", b"/metrics"], [b"GET", b"/"])
    status, body = ("200 OK", exposition(counters)) if found else ("404 Not Found", "GET /metrics\n")
    data = body.encode()
    kind = "text/plain; version=0.0.4; charset=utf-8"
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(data)}", "Connection: close", "", "")
    return "\r\n".join(lines).encode() + data
