"""Accept connections, find each its destination, and copy until both have ended.

Nothing that a peer does ends the service: a refusal, a name that does not resolve, a peer that breaks off are that
connection's own. Connections beyond the limit wait in the backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

from alcove.errors import AlcoveError
from alcove.proxy.metrics import Counters
from alcove.proxy.relay import relay
from alcove.proxy.rules import RefusedError
from alcove.proxy.shares import Shares

MAX_CONNECTIONS: Final = 4096  # two descriptors and some 10 KiB each
_DESCRIPTORS: Final = 4 * MAX_CONNECTIONS  # both ways in and out, at their limits
TCP_SECONDS: Final = 10.0  # for a connection to one address
_PAUSE: Final = 0.1  # seconds, after the process ran out of descriptors

Handler = Callable[[socket.socket, Any], Awaitable[None]]
Dial = Callable[[socket.socket, Any], Awaitable[socket.socket]]

_log = logging.getLogger("alcove.proxy")


async def accept(
    listener: socket.socket,
    handle: Handler,
    counters: Counters,
    *,
    limit: int = MAX_CONNECTIONS,
    owner: Callable[[Any], Hashable] | None = None,
) -> None:
    """As :class:`Acceptor`, until cancelled."""
    await Acceptor(listener, handle, counters, limit=limit, owner=owner).run()


class Acceptor:
    """Hands each connection to `handle`, at most `limit` at a time.

    Args:
        listener: Listens; must not block.
        handle: Serves a connection, given with its peer's address; the socket is closed when it returns. What it
            raises is logged and counted.
        counters: What is counted.
        limit: How many at a time; those beyond wait in the backlog.
        owner: Whose a connection is, from its peer's address. With it no owner keeps others out (:class:`Shares`): who
            has his share already is hung up on.
    """

    def __init__(
        self,
        listener: socket.socket,
        handle: Handler,
        counters: Counters,
        *,
        limit: int = MAX_CONNECTIONS,
        owner: Callable[[Any], Hashable] | None = None,
    ) -> None:
        self._listener = listener
        self._handle = handle
        self._counters = counters
        self._free = asyncio.Semaphore(limit)
        self._owner = owner
        self._shares = Shares(limit)
        self._stopped = False
        self._accepting: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until :meth:`stop`, and the last connection's end; or until cancelled."""
        if not self._stopped:
            async with asyncio.TaskGroup() as tasks:
                self._accepting = tasks.create_task(self._accept(tasks))

    def stop(self) -> None:
        """Accept no more; the connections that are there go on."""
        self._stopped = True
        if self._accepting is not None:
            self._accepting.cancel()

    async def _accept(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._free.acquire()
            try:
                stream, peer = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, or the caller has gone: neither ends the service
                self._free.release()
                _log.warning("%s: accept failed: %s", self._counters.name, error)
                await asyncio.sleep(_PAUSE)
                continue
            stream.setblocking(False)
            tasks.create_task(self._serve(stream, peer))

    async def _serve(self, stream: socket.socket, peer: Any) -> None:
        counters = self._counters
        counters.accepted += 1
        counters.open += 1
        try:
            with stream, self._place(peer):
                await self._handle(stream, peer)
        except RefusedError as error:
            counters.refused += 1
            _log.warning("%s: refused: %s", counters.name, error.message)
        except (OSError, UnicodeError, AlcoveError) as error:  # UnicodeError: a label that no host name can have
            counters.failed += 1
            _log.warning("%s: %s", counters.name, str(error) or type(error).__name__)
        except Exception:  # noqa: BLE001 - the boundary: a fault of ours must be this connection's end only
            counters.failed += 1
            _log.exception("%s: a connection met a fault of this program", counters.name)
        finally:
            counters.open -= 1
            self._free.release()

    @contextlib.contextmanager
    def _place(self, peer: Any) -> Iterator[None]:
        if self._owner is None:
            yield
            return
        owner = self._owner(peer)
        if not self._shares.take(owner):
            raise RefusedError(f"{owner} has as many connections as are left for all others")
        try:
            yield
        finally:
            self._shares.give(owner)


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
    """An event that SIGTERM and SIGINT set; the process of a service has as many descriptors as may be had."""
    take_descriptors()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def take_descriptors() -> None:
    """Raise the limit of open files to what may be had: each connection takes two.

    In an enclave everything runs as root, and the kernel's first limit is 4096; elsewhere the hard limit mostly stays.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if most == resource.RLIM_INFINITY else max(most, _DESCRIPTORS)
    for limit in (wanted, most):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return


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
