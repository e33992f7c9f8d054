"""The console of a debug enclave: real pipes and sockets, with a test in QEMU's place."""

from __future__ import annotations

import asyncio
import os
import tempfile
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from alcove.enclave import console
from alcove.enclave.console import KEPT_BYTES, Console

Say = Callable[[bytes], Awaitable[None]]
_SECONDS: Final = 60


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name, "console.sock")


def with_console(path: Path, story: Callable[[Console, Say], Awaitable[None]]) -> None:
    """Run a story; `say` writes to the pipe as QEMU does, and has the console read it."""

    async def live() -> None:
        made = Console(asyncio.get_running_loop(), path)
        await made.start()
        pipe = os.fdopen(made.take_input(), "wb", buffering=0)

        async def say(data: bytes) -> None:
            pipe.write(data)  # a pipe holds 64 KiB
            made.drain()

        try:
            await story(made, say)
        finally:
            pipe.close()
            made.close()
            while kept:
                kept.pop().close()

    asyncio.run(live())


async def connected(path: Path) -> asyncio.StreamReader:
    reader, _writer = await asyncio.open_unix_connection(path)
    kept.append(_writer)
    return reader


kept: list[asyncio.StreamWriter] = []  # a writer that is collected closes its stream


def test_who_comes_late_gets_what_was_said_before(path: Path) -> None:
    """From the boot on, then what comes; only the owner may connect."""
    modes = []

    async def story(made: Console, say: Say) -> None:
        modes.append(os.stat(path).st_mode & 0o777)  # noqa: PTH116
        await say(b"boot ")
        reader = await connected(path)
        assert await reader.readexactly(5) == b"boot "
        await say(b"application")
        assert await reader.readexactly(11) == b"application"
        assert made.tail() == b"boot application"

    with_console(path, story)
    assert modes == [0o600]


def test_a_mebibyte_is_kept(path: Path) -> None:
    """A guest that talks for ever does not fill the supervisor's memory: the oldest goes."""

    async def story(made: Console, say: Say) -> None:
        await say(b"first")
        for _ in range(KEPT_BYTES // 32768 + 8):
            await say(b"x" * 32767 + b"\n")
        await say(b"last")
        assert len(made.tail()) <= KEPT_BYTES
        assert b"first" not in made.tail()
        assert made.tail().endswith(b"last")

    with_console(path, story)


def test_the_end_waits_for_those_who_watch(path: Path) -> None:
    """More than a socket holds, and the end right after it: a client that reads on gets all of it, and then its end."""

    async def story(made: Console, say: Say) -> None:
        reader = await connected(path)
        data = os.urandom(KEPT_BYTES // 2)
        for at in range(0, len(data), 32768):
            await say(data[at : at + 32768])
        finishing = asyncio.create_task(made.finish(_SECONDS))
        assert await reader.read(-1) == data
        await finishing

    with_console(path, story)


def test_the_end_waits_for_nobody_for_long(path: Path) -> None:
    """A client that does not read delays the end by the time given, and no more."""

    async def story(made: Console, say: Say) -> None:
        reader = await connected(path)
        for _ in range(24):
            await say(os.urandom(32768))
        await asyncio.wait_for(made.finish(0.05), _SECONDS)
        assert len(await reader.read(10)) == 10

    with_console(path, story)


def test_clients_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than there may be is let go at once; the others go on."""
    monkeypatch.setattr(console, "_MAX_CLIENTS", 2)

    async def story(_: Console, say: Say) -> None:
        await say(b"a")
        first, second = await connected(path), await connected(path)
        assert (await first.readexactly(1), await second.readexactly(1)) == (b"a", b"a")
        assert await (await connected(path)).read() == b""
        await say(b"b")
        assert (await first.readexactly(1), await second.readexactly(1)) == (b"b", b"b")

    with_console(path, story)


def test_what_a_client_says_is_not_kept(path: Path) -> None:
    """A client that sends without end costs the supervisor no memory, and still sees the console."""

    async def story(made: Console, say: Say) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        kept.append(writer)
        tracemalloc.start()
        try:
            for _ in range(16):
                writer.write(bytes(1 << 20))
                await writer.drain()
            await say(b"still there")
            assert await asyncio.wait_for(reader.readexactly(11), _SECONDS) == b"still there"
            assert tracemalloc.get_traced_memory()[0] < 4 << 20
        finally:
            tracemalloc.stop()

    with_console(path, story)
