from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.proxy.peers import story

from alcove.proxy import relay as relaying
from alcove.proxy.relay import relay


def between(scenario: Callable[[socket.socket, socket.socket, asyncio.Task[tuple[int, int]]], Awaitable[None]]) -> None:
    """Run a scenario with the outer ends of two socket pairs and the relay between the inner ones."""

    async def run() -> None:
        (outer_left, left), (right, outer_right) = socket.socketpair(), socket.socketpair()
        for end in (outer_left, left, right, outer_right):
            end.setblocking(False)
        task = asyncio.create_task(relay(left, right))
        with outer_left, left, right, outer_right:
            try:
                await scenario(outer_left, outer_right, task)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    story(run)


async def read_all(end: socket.socket) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while chunk := await loop.sock_recv(end, 1 << 20):
        data += chunk
    return data


def test_both_directions_are_counted_and_end_by_themselves() -> None:
    """Each end is passed on, and the relay returns when both have come."""

    async def scenario(left: socket.socket, right: socket.socket, task: asyncio.Task[tuple[int, int]]) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(left, b"question")
        left.shutdown(socket.SHUT_WR)
        assert await read_all(right) == b"question"
        assert not task.done()
        await loop.sock_sendall(right, b"an answer")
        right.shutdown(socket.SHUT_WR)
        assert await read_all(left) == b"an answer"
        assert await task == (8, 9)

    between(scenario)


def test_a_reader_that_does_not_read_holds_up_its_own_direction_only() -> None:
    """The source is read no more, so that memory is bounded; the other direction goes on; nothing is lost after."""

    async def scenario(left: socket.socket, right: socket.socket, task: asyncio.Task[tuple[int, int]]) -> None:
        loop = asyncio.get_running_loop()
        data = bytes(range(256)) * (32 << 10)  # 8 MiB: far more than all buffers between
        sending = asyncio.create_task(loop.sock_sendall(left, data))
        await loop.sock_sendall(right, b"still here")
        assert await loop.sock_recv(left, 100) == b"still here"
        assert not sending.done()
        got = b""
        while len(got) < len(data):
            got += await loop.sock_recv(right, 1 << 20)
        await sending
        assert got == data

    between(scenario)


def test_a_target_that_hangs_up_early_ends_its_direction_and_not_the_answer() -> None:
    """A server that answers and closes without reading all: the answer arrives, then the end."""

    async def scenario(left: socket.socket, right: socket.socket, task: asyncio.Task[tuple[int, int]]) -> None:
        loop = asyncio.get_running_loop()
        right.shutdown(socket.SHUT_RD)
        await loop.sock_sendall(right, b"too long")
        with pytest.raises(BrokenPipeError):
            await loop.sock_sendall(left, bytes(16 << 20))
        assert await loop.sock_recv(left, 100) == b"too long"
        right.shutdown(socket.SHUT_WR)
        assert await read_all(left) == b""
        await task

    between(scenario)


def test_a_side_that_breaks_off_ends_both() -> None:
    """A reset (here: closed with unread data) is raised, and both directions are over."""

    async def scenario(left: socket.socket, right: socket.socket, task: asyncio.Task[tuple[int, int]]) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(left, b"x")
        assert await loop.sock_recv(right, 1) == b"x"
        await loop.sock_sendall(right, b"unread")
        arrived = asyncio.Event()
        loop.add_reader(left, arrived.set)
        await arrived.wait()
        loop.remove_reader(left)
        left.close()
        with pytest.raises(ConnectionResetError):
            await task

    between(scenario)


def test_a_side_that_has_gone_altogether_does_not_hold_the_other_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said last arrives; a peer that then stays silent is left after a while."""
    monkeypatch.setattr(relaying, "LINGER_SECONDS", 0.05)

    async def scenario(left: socket.socket, right: socket.socket, task: asyncio.Task[tuple[int, int]]) -> None:
        await asyncio.get_running_loop().sock_sendall(left, b"last words")
        left.close()
        assert await read_all(right) == b"last words"
        with pytest.raises(ConnectionResetError, match="gone"):
            await task

    between(scenario)
