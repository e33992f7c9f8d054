"""What an enclave printed last, on the parent's port 9038: over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from alcove.devices.unix_path import listen
from alcove.enclave import turns
from alcove.enclave.last_words import MAX_WORDS, LastWords

SECONDS = 60


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name, "9038")


def guest(path: Path, data: bytes = b"") -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    connection.connect(str(path))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)
    return connection


def say(path: Path, data: bytes) -> bytes:
    """Hand over as init does: what comes back before the other end hangs up."""
    with guest(path, data) as connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1)
    return b""


def with_words(path: Path, story: Callable[[LastWords], Awaitable[None]]) -> None:
    async def live() -> None:
        with listen(path) as listener:
            words = LastWords(asyncio.get_running_loop(), listener)
            try:
                await asyncio.wait_for(story(words), SECONDS)
            finally:
                words.close()

    asyncio.run(live())


def test_they_are_kept_whole_and_the_guest_hears_that_they_were_taken(path: Path) -> None:
    """As much as init keeps; the end of the connection says that all has arrived."""

    async def story(words: LastWords) -> None:
        assert words.text is None
        said = bytes(range(256)) * (MAX_WORDS // 256)
        assert await asyncio.to_thread(say, path, said) == b""
        assert words.text == said

    with_words(path, story)


def test_a_guest_can_only_replace_its_own_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence ends, and more than is kept is not taken; the next is heard."""
    monkeypatch.setattr(turns, "SECONDS", 0.05)

    async def story(words: LastWords) -> None:
        silent = await asyncio.to_thread(guest, path, b"begun")
        await asyncio.to_thread(say, path, b"x" * (MAX_WORDS + 100_000))
        assert words.text in (None, b"x" * MAX_WORDS)
        while words.text != b"goodbye\n":  # once, unless this machine stands still
            await asyncio.to_thread(say, path, b"goodbye\n")
        silent.close()

    with_words(path, story)
