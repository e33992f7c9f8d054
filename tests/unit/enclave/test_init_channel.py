"""What the guest's init says on the parent's port 9000, over real sockets, and how long it may take to say it."""

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
from alcove.enclave.init_channel import InitChannel
from alcove.enclave.report import Kind, Report
from alcove.enclave.supervisor import boot_timeout
from alcove.errors import ProtocolError

HEARTBEAT = b"\xb7"
GIB = 1024**3
SECONDS = 60


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name, "9000")


def guest(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    connection.connect(str(path))
    return connection


def say(path: Path, data: bytes) -> bytes:
    """Send this as the guest does, and return what comes until the other end hangs up."""
    with guest(path) as connection:
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            return connection.recv(100)
    return b""


def with_channel(path: Path, story: Callable[[InitChannel], Awaitable[None]]) -> None:
    async def live() -> None:
        with listen(path) as listener:
            channel = InitChannel(asyncio.get_running_loop(), listener)
            try:
                await asyncio.wait_for(story(channel), SECONDS)
            finally:
                channel.close()

    asyncio.run(live())


def test_a_heartbeat_is_answered_and_reports_are_heard_from_then_on(path: Path) -> None:
    """The byte comes back (eif.md §10); then init may say how the application ended."""

    async def story(channel: InitChannel) -> None:
        answer = asyncio.create_task(asyncio.to_thread(say, path, HEARTBEAT))
        await channel.heartbeat()
        assert await answer == HEARTBEAT
        assert channel.report is None
        while channel.report is None:  # once, unless this machine stands still for seconds
            await asyncio.to_thread(say, path, b"exit 7\n")
        assert channel.report == Report(Kind.EXIT, 7)

    with_channel(path, story)


@pytest.mark.parametrize("said", [b"\x00", b"\xb6\xb7", b""])
def test_what_is_no_heartbeat_is_refused(path: Path, said: bytes) -> None:
    """Another byte, and the end without one: the start fails (E36)."""

    async def story(channel: InitChannel) -> None:
        asking = asyncio.create_task(asyncio.to_thread(say, path, said))
        with pytest.raises(ProtocolError, match="no heartbeat"):
            await channel.heartbeat()
        await asking

    with_channel(path, story)


def test_a_guest_can_only_delay_its_own_report(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nonsense, more than a report holds and a connection that says nothing are passed over; the next is heard."""
    monkeypatch.setattr(turns, "SECONDS", 0.05)

    async def story(channel: InitChannel) -> None:
        first = asyncio.create_task(asyncio.to_thread(say, path, HEARTBEAT))
        await channel.heartbeat()
        await first
        silent = await asyncio.to_thread(guest, path)
        for said in (b"nonsense\n", b"exit 7", b"x" * 100_000, b"\n"):
            await asyncio.to_thread(say, path, said)
        assert channel.report is None
        while channel.report is None:
            await asyncio.to_thread(say, path, b"signal 11\n")
        assert channel.report == Report(Kind.SIGNAL, 11)
        silent.close()

    with_channel(path, story)


@pytest.mark.parametrize(
    ("image_bytes", "memory_mib", "seconds"),
    [
        (1, 64, 180),
        (6 * GIB, 24 * 1024, 180),
        (6 * GIB + 1, 24 * 1024, 270),
        (12 * GIB + 1, 100 * 1024, 360),
        (1, 100 * 1024 + 1, 270),
        (0, 0, 180),
    ],
)
def test_the_time_for_a_boot_is_awss(image_bytes: int, memory_mib: int, seconds: float) -> None:
    """cli.md §3.3: 90 s for each 6 GiB of image begun, and 90 s for each 100 GiB of memory."""
    assert boot_timeout(image_bytes, memory_mib) == seconds
