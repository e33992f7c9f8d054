"""What the tests of the proxies share: an enclave's socket, servers and clients of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def story(coroutine: Callable[[], Awaitable[Any]], seconds: float = 60) -> Any:
    """Run a coroutine to its end; one that hangs fails."""

    async def limited() -> Any:
        async with asyncio.timeout(seconds):
            return await coroutine()

    return asyncio.run(limited())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Give back what comes, as it comes."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
    except ConnectionError:
        writer.close()


async def echo_at_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer, backwards, only after the caller's end: without half-close nothing would come back."""
    data = await reader.read()
    writer.write(data[::-1])
    await writer.drain()
    writer.close()


@asynccontextmanager
async def tcp_server(handler: Handler = echo_at_end) -> AsyncIterator[int]:
    """A TCP server on the loopback; yields its port."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def enclave_socket(path: Path, handler: Handler, port: int = 443) -> AsyncIterator[Path]:
    """The hybrid socket of an enclave where something listens on one port."""

    async def offer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() != b"CONNECT %d\n" % port:
            writer.close()
            return
        writer.write(b"OK 1073741824\n")
        await handler(reader, writer)

    path.parent.mkdir(parents=True, exist_ok=True)
    server = await asyncio.start_unix_server(offer, str(path), backlog=1024)
    async with server:
        yield path
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - a socket


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    """Send, end, and read to the end; a connection that breaks gives nothing."""
    try:
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        answer = await reader.read()
    except OSError:  # the kernel has several words for it
        answer = b""
    writer.close()
    return answer


async def ask_tcp(port: int, data: bytes) -> bytes:
    """The same to a port of the loopback."""
    return await ask(*await asyncio.open_connection("127.0.0.1", port), data)


async def ask_unix(path: Path, data: bytes) -> bytes:
    """The same to a Unix socket."""
    return await ask(*await asyncio.open_unix_connection(str(path)), data)


@asynccontextmanager
async def serving(start: Callable[[asyncio.Event, Callable[..., None]], Awaitable[None]]) -> AsyncIterator[Any]:
    """Run a service; yields what it said when it was ready."""
    stop, said = asyncio.Event(), asyncio.get_running_loop().create_future()

    def ready(*what: Any) -> None:
        if not said.done():
            said.set_result(what[0] if what else None)

    task = asyncio.ensure_future(start(stop, ready))
    await asyncio.wait((task, said), return_when=asyncio.FIRST_COMPLETED)
    try:
        yield said.result() if said.done() else None
    finally:
        stop.set()
        await task
