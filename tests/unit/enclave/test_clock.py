"""The parent's end of the time service."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import struct
from pathlib import Path

import pytest

from alcove.enclave import turns
from alcove.enclave.clock import TimeService


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(str(path))
    listener.listen()
    return listener


async def ask(path: Path, question: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(question)
    writer.write_eof()
    said = b""
    with contextlib.suppress(ConnectionError):  # hung up with questions unread
        while chunk := await reader.read(16):
            said += chunk
    writer.close()
    return said


def test_every_byte_is_answered_with_the_time(tmp_path: Path) -> None:
    """The mark and eight bytes, big-endian, as guest/clock.c reads them; at most sixteen on a connection."""
    times = iter(range(1_800_000_000_000_000_000, 1_800_000_000_000_000_100))

    async def play() -> tuple[bytes, bytes]:
        with listen(tmp_path / "s") as listener:
            service = TimeService(asyncio.get_running_loop(), listener, lambda: next(times))
            try:
                return await ask(tmp_path / "s", b"xy"), await ask(tmp_path / "s", bytes(17))
            finally:
                service.close()

    two, many = asyncio.run(asyncio.wait_for(play(), 60))
    assert struct.unpack(">8sQ8sQ", two) == (
        b"ALCVTIME",
        1_800_000_000_000_000_000,
        b"ALCVTIME",
        1_800_000_000_000_000_001,
    )
    assert len(many) == 16 * 16


def test_without_descriptors_the_guest_waits(tmp_path: Path) -> None:
    """Who comes while the supervisor can open no more is answered when it can."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def play() -> bytes:
        with listen(tmp_path / "s") as listener, socket.socket(socket.AF_UNIX) as guest:
            service = TimeService(asyncio.get_running_loop(), listener)
            guest.connect(str(tmp_path / "s"))
            guest.sendall(b"x")
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
            try:
                await asyncio.sleep(0.05)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            guest.setblocking(False)
            try:
                return await asyncio.get_running_loop().sock_recv(guest, 16)
            finally:
                service.close()

    assert len(asyncio.run(asyncio.wait_for(play(), 60))) == 16


def test_a_silent_guest_delays_nobody_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a question is dropped after its time, and the next one is served."""
    monkeypatch.setattr(turns, "SECONDS", 0.2)

    async def play() -> bytes:
        with listen(tmp_path / "s") as listener:
            service = TimeService(asyncio.get_running_loop(), listener)
            try:
                _, silent = await asyncio.open_unix_connection(tmp_path / "s")
                said = await ask(tmp_path / "s", b"x")
                silent.close()
                return said
            finally:
                service.close()

    assert len(asyncio.run(asyncio.wait_for(play(), 60))) == 16
