"""asyncio's streams over vsock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from alcove.vsock import hybrid, unix_stream
from alcove.vsock.sockets import CONNECT_SECONDS, Address, Listener, checked, refused
from alcove.vsock.transports import Transport, transport
from alcove.vsock.unix_listener import BACKLOG

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Address], Awaitable[None]]

_PAUSE: Final = 0.1  # seconds, after the process ran out of descriptors
_log = logging.getLogger("alcove.vsock")


async def connect(address: Address, *, timeout: float = CONNECT_SECONDS) -> socket.socket:  # noqa: ASYNC109 - as the blocking one
    """A connected socket that does not block; otherwise as :func:`alcove.vsock.connect`.

    Raises:
        ConnectionRefusedError: Nobody listens there.
        OSError: ENODEV: no enclave has that CID, or no vsock leads there; anything that a socket meets.
    """
    cid, port = checked(address)
    if transport() is Transport.KERNEL:
        loop = asyncio.get_running_loop()
        return await _connected(socket.AF_VSOCK, lambda stream: loop.sock_connect(stream, (cid, port)), timeout)
    path, told = hybrid.socket_of(cid, port)
    if told:
        return await hybrid.connect_async(path, port, timeout)
    try:
        return await _connected(socket.AF_UNIX, lambda stream: unix_stream.connect_async(stream, path), timeout)
    except FileNotFoundError:
        raise refused(port) from None


async def _connected(family: int, connect: Callable[[socket.socket], Awaitable[None]], seconds: float) -> socket.socket:
    stream = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        async with asyncio.timeout(seconds):
            await connect(stream)
    except BaseException:
        stream.close()
        raise
    return stream


async def open_connection(
    address: Address,
    *,
    timeout: float = CONNECT_SECONDS,  # noqa: ASYNC109 - as asyncio's own
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As :func:`asyncio.open_connection`, to a CID and a port.

    Raises:
        OSError: As :func:`connect`.
    """
    return await _streams(await connect(address, timeout=timeout))


async def _streams(stream: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    try:
        # any connected stream socket will do, and transports half-close Unix sockets as they do TCP's
        transported, _ = await loop.create_connection(lambda: protocol, sock=stream)
    except BaseException:
        stream.close()
        raise
    return reader, asyncio.StreamWriter(transported, protocol, reader, loop)


@asynccontextmanager
async def serve(handler: Handler, port: int, *, backlog: int = BACKLOG) -> AsyncIterator[Listener]:
    """Hand each connection to `handler`, with the peer's CID and port, for as long as the block lasts.

    The stream is closed when the handler returns. A handler that raises ends its own connection, which is logged.

    Raises:
        MachineError: The port is another program's.
    """
    with Listener(port, backlog) as listener:
        listener.socket.setblocking(False)
        accepting = asyncio.create_task(_accept(handler, listener))
        try:
            yield listener
        finally:
            accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await accepting


async def _accept(handler: Handler, listener: Listener) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                stream, name = await loop.sock_accept(listener.socket)
            except OSError as error:  # out of descriptors, or the caller has gone
                _log.warning("accept failed: %s", error)
                await asyncio.sleep(_PAUSE)
                continue
            tasks.create_task(_handle(handler, stream, listener.peer(name)))


async def _handle(handler: Handler, stream: socket.socket, peer: Address) -> None:
    try:
        reader, writer = await _streams(stream)
        try:
            await handler(reader, writer, peer)
        finally:
            writer.close()
    except Exception:  # noqa: BLE001 - the boundary: one connection must not end the others
        _log.exception("the handler of a connection from CID %d failed", peer[0])
