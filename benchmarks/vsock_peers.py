"""Processes around a vsock device that is measured: its own, and the parent's programs (see vsock_device.py)."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from alcove.devices.vsock.backend import VsockBackend
from alcove.types import Cid

_CHUNK: Final = 256 * 1024


def cpu_seconds(pid: int) -> float:
    """Processor time of a process with one thread, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(512)
    return listener


def serve_device(directory: Path, cid: Cid, ready: Any) -> None:
    """Serve a vsock device at `device.sock`; the parent's port P is `P.sock`. Until it is ended."""

    async def run() -> None:
        VsockBackend(
            asyncio.get_running_loop(),
            _listen(directory / "device.sock"),
            cid,
            host_socket=directory / "vsock.sock",
            port_path=lambda port: directory / f"{port}.sock",
            on_closed=lambda _reason: None,
        )
        ready.send(None)
        await asyncio.Event().wait()

    asyncio.run(run())


def _each(path: Path, streams: int, ready: Any, events: int, act: Callable[[socket.socket], bool]) -> None:
    """Accept so many streams, and call `act` for every one that is ready, until it has said that it is done."""
    listener = _listen(path)
    ready.send(None)
    with selectors.DefaultSelector() as selector:
        for _ in range(streams):
            sock, _ = listener.accept()
            sock.setblocking(False)
            selector.register(sock, events)
        while selector.get_map():
            for key, _ in selector.select():
                sock = key.fileobj  # type: ignore[assignment]
                with contextlib.suppress(BlockingIOError):
                    if act(sock):
                        selector.unregister(sock)


def drain(path: Path, streams: int, ready: Any) -> None:
    """Read every stream to its end."""
    into = bytearray(_CHUNK)
    _each(path, streams, ready, selectors.EVENT_READ, lambda sock: not sock.recv_into(into))


def fill(path: Path, streams: int, amount: int, ready: Any) -> None:
    """Write `amount` bytes on every stream."""
    data = memoryview(bytes(_CHUNK))
    left: dict[socket.socket, int] = {}

    def write(sock: socket.socket) -> bool:
        left[sock] = left.get(sock, amount) - sock.send(data[: left.get(sock, amount)])
        return not left[sock]

    _each(path, streams, ready, selectors.EVENT_WRITE, write)
    selectors.DefaultSelector().select(60)  # the streams stay open until this process is ended


def echo(path: Path, _streams: int, ready: Any) -> None:
    """Give back what comes on one stream."""
    listener = _listen(path)
    ready.send(None)
    sock, _ = listener.accept()
    while data := sock.recv(_CHUNK):
        sock.sendall(data)


def drain_one(sock: socket.socket, ready: Any) -> None:
    """Read a socket to its end."""
    into = bytearray(_CHUNK)
    ready.send(None)
    while sock.recv_into(into):
        pass


def fill_one(sock: socket.socket, ready: Any) -> None:
    """Fill a socket until nobody reads."""
    data = bytes(_CHUNK)
    ready.send(None)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(data)
