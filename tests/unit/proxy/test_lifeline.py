"""What an application in an enclave lets its parent see and ask for."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from tests.unit.proxy.peers import ask_unix, story

from alcove.proxy import application, lifeline
from alcove.proxy.application import Watch
from alcove.proxy.companions import Companions
from alcove.proxy.lifeline import Log

SOCKET = "vsock/9041.sock"


def test_a_log_keeps_the_last_and_tells_what_was_missed() -> None:
    """Each reader has a place of its own; one that was too slow hears how much is lost."""
    log = Log(kept=8)
    log.write(b"abcd")
    assert log.read(0) == (b"abcd", 4)
    assert log.read(4) == (b"", 4)
    log.write(b"efghijkl")
    assert log.read(4) == (b"efghijkl", 12)
    log.write(b"mnop")
    assert log.read(4) == (b"\n[4 bytes are lost]\nijklmnop", 16)
    assert log.read(0) == (b"ijklmnop", 16)


async def call(run: Path, word: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(run / SOCKET))
    writer.write(word + b"\n")
    return reader, writer


def starting(script: str, watch: Watch) -> asyncio.Task[int]:
    return asyncio.create_task(application.run(Companions(), [sys.executable, "-u", "-c", script], watch))


async def listening(run: Path, task: asyncio.Task[int]) -> None:
    while not (run / SOCKET).exists() and not task.done():  # noqa: ASYNC110 - a file appears, and no event
        await asyncio.sleep(0.01)


ECHO = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("going"), sys.exit(5)))
print("up")
while True: signal.pause()
"""


def test_the_log_is_followed_to_its_end_and_stop_is_a_signal(
    run_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was said, what comes, and the last words; the output also goes where it went before."""

    async def tell() -> None:
        task = starting(ECHO, Watch(log=True))
        await listening(run_directory, task)
        reader, writer = await call(run_directory, b"log")
        assert await reader.readline() == b"up\n"
        assert (await ask_unix(run_directory / SOCKET, b"tail\n")) == b"up\n"
        stop, stopping = await call(run_directory, b"stop")
        assert await stop.readline() == b'{"stopping": true}\n'
        stopping.close()
        assert await reader.read() == b"going\n"
        writer.close()
        assert await task == 5
        assert not (run_directory / SOCKET).exists()

    story(tell)
    assert capfd.readouterr().out == "up\ngoing\n"


def test_health_is_that_of_a_command(run_directory: Path, tmp_path: Path) -> None:
    """One success is healthy; three failures in a row are not; each change is a line."""
    flag = tmp_path / "well"

    async def tell() -> None:
        task = starting(ECHO, Watch(health=["test", "-e", str(flag)], interval=0.05))
        await listening(run_directory, task)
        reader, writer = await call(run_directory, b"status")
        assert await reader.readline() == b'{"state": "running", "health": null}\n'
        assert await reader.readline() == b'{"state": "running", "health": "unhealthy"}\n'
        flag.touch()
        assert await reader.readline() == b'{"state": "running", "health": "healthy"}\n'
        await ask_unix(run_directory / SOCKET, b"stop\n")
        assert await reader.readline() == b'{"state": "ended", "health": "healthy"}\n'
        assert await reader.read() == b""
        writer.close()
        assert await task == 5

    story(tell)


def test_the_output_is_hidden_unless_it_is_asked_for(run_directory: Path) -> None:
    """A lifeline without --log says how the application fares, and no word of what it prints."""

    async def tell() -> None:
        task = starting(ECHO, Watch())
        await listening(run_directory, task)
        for word in (b"log\n", b"tail\n"):
            assert await ask_unix(run_directory / SOCKET, word) == b""
        await ask_unix(run_directory / SOCKET, b"stop\n")
        await task

    story(tell)


def test_hostile_callers_do_no_harm(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, garbage, more callers than there are places, and one that does not read: the application goes on."""
    monkeypatch.setattr(lifeline, "LINE_SECONDS", 0.3)
    monkeypatch.setattr(lifeline, "FAREWELL_SECONDS", 0.1)
    script = "import sys\nfor n in range(100): print('x' * 50000)\nsys.stdin = None\n" + ECHO

    async def tell() -> None:
        task = starting(script, Watch(log=True))
        await listening(run_directory, task)
        deaf = [await call(run_directory, b"log") for _ in range(5)]
        silent = [await asyncio.open_unix_connection(str(run_directory / SOCKET)) for _ in range(40)]
        for garbage in (b"", b"\0" * 100, os.urandom(5000), b"x" * 100000, b"LOG\n"):
            assert await ask_unix(run_directory / SOCKET, garbage) == b""
        stop, stopping = await call(run_directory, b"stop")
        assert await stop.readline() == b'{"stopping": true}\n'
        assert await task == 5
        for _, writer in [*deaf, *silent, (stop, stopping)]:
            writer.transport.abort()

    story(tell)
