"""Accept connections, find each its destination, and copy until both have ended.

Nothing that a peer does ends the service: a refusal, a name that does not resolve, a peer that breaks off are that
connection's own. Connections beyond the limit wait in the backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from alcove.errors import AlcoveError
from alcove.proxy.metrics import Counters
from alcove.proxy.relay import relay

MAX_CONNECTIONS: Final = 4096  # two descriptors and some 10 KiB each
TCP_SECONDS: Final = 10.0  # for a connection to one address
_PAUSE: Final = 0.1  # seconds, after the process ran out of descriptors

Handler = Callable[[socket.socket, Any], Awaitable[None]]
Dial = Callable[[socket.socket, Any], Awaitable[socket.socket]]

_log = logging.getLogger("alcove.proxy")


class RefusedError(AlcoveError):
    """A rule does not allow the connection; the message names the rule."""


async def accept(listener: socket.socket, handle: Handler, counters: Counters, *, limit: int = MAX_CONNECTIONS) -> None:
    """Hand each connection to `handle`, at most `limit` at a time, until cancelled.

    Args:
        listener: Listens; must not block.
        handle: Serves a connection, given with its peer's address; the socket is closed when it returns. What it
            raises is logged and counted.
        counters: What is counted.
        limit: How many at a time; those beyond wait in the backlog.
    """
    loop = asyncio.get_running_loop()
    free = asyncio.Semaphore(limit)

    async def one(stream: socket.socket, peer: Any) -> None:
        counters.accepted += 1
        counters.open += 1
        try:
            with stream:
                await handle(stream, peer)
        except RefusedError as error:
            counters.refused += 1
            _log.warning("%s: refused: %s", counters.name, error.message)
        except (OSError, UnicodeError, AlcoveError) as error:  # UnicodeError: a label that no host name can have
            counters.failed += 1
            _log.warning("%s: %s", counters.name, str(error) or type(error).__name__)
        finally:
            counters.open -= 1
            free.release()

    async with asyncio.TaskGroup() as tasks:
        while True:
            await free.acquire()
            try:
                stream, peer = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the caller has gone: neither ends the service
                free.release()
                _log.warning("%s: accept failed: %s", counters.name, error)
                await asyncio.sleep(_PAUSE)
                continue
            stream.setblocking(False)
            tasks.create_task(one(stream, peer))


def forwarder(dial: Dial, counters: Counters) -> Handler:
    """A handler that connects each stream with the one that `dial` gives."""

    async def handle(stream: socket.socket, peer: Any) -> None:
        with await dial(stream, peer) as other:
            await copy(stream, other, counters)

    return handle


async def copy(stream: socket.socket, other: socket.socket, counters: Counters) -> None:
    """Copy both ways and count; a peer that breaks off is worth a line, and no more."""
    try:
        sent, received = await relay(stream, other)
    except OSError as error:
        _log.info("%s: a connection broke: %s", counters.name, error)
        return
    counters.sent += sent
    counters.received += received
    _log.info("%s: a connection ended: %d bytes sent, %d received", counters.name, sent, received)


async def connect_tcp(family: int, address: Any, seconds: float = TCP_SECONDS) -> socket.socket:
    """A TCP stream that does not block.

    Raises:
        OSError: Nobody answers there.
    """
    stream = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_connect(stream, address)
        tune(stream)
    except BaseException:
        stream.close()
        raise
    return stream


def tune(stream: socket.socket) -> None:
    """What every TCP stream of a proxy has. A half-closed one has no time limit: the kernel finds a dead peer."""
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@asynccontextmanager
async def stopped_by_signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def until(stop: asyncio.Event, services: Iterable[Awaitable[None]]) -> None:
    """Run services until `stop` is set, or one of them fails.

    Raises:
        Exception: What a service failed with.
    """
    tasks = [asyncio.ensure_future(service) for service in services]
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait((*tasks, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        for task in (*tasks, stopping):
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)
