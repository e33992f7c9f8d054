"""An asyncio loop in a thread, as the supervisor runs one, and devices in it."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alcove.devices.nsm.backend import NsmBackend
from alcove.devices.nsm.module import NsmModule
from alcove.devices.vsock.backend import VsockBackend
from alcove.testing.fake_drivers import FakeNsmDriver, FakeVsockDriver
from alcove.testing.fake_guest import FakeGuest
from alcove.types import Cid, Port

CID = Cid(16)
SECONDS = 60  # for what comes within milliseconds, unless this machine has more to do


class LoopThread:
    """Runs callables in the loop's thread, and notices what the loop had to swallow."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, action: Callable[[], Any]) -> Any:
        """Call `action` in the loop's thread and return what it returns."""

        async def call() -> Any:
            return action()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(SECONDS)

    def close(self) -> None:
        """Stop the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS)
        self.loop.close()


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()
    assert not thread.errors


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


class NsmRig:
    """A module behind a real back-end on a real socket."""

    def __init__(self, loop: LoopThread, directory: Path) -> None:
        self.loop = loop
        self.path = directory / "nsm.sock"
        self.closed: queue.Queue[str | None] = queue.Queue()
        self.documents: list[tuple[Any, ...]] = []
        self.listener = listen(self.path)
        self.module = NsmModule("i-0123456789abcdef0-enc0123456789abcdef", {0: b"\x11" * 48}, self.attest, self.random)
        self.backend = loop.run(lambda: NsmBackend(loop.loop, self.listener, self.module, self.closed.put))

    def attest(self, *fields: Any) -> bytes:
        """Sign, in a way."""
        self.documents.append(fields)
        return b"document"

    def random(self, count: int) -> bytes:
        """Bytes that are no surprise."""
        return bytes(range(256))[:count]

    def guest(self, **options: Any) -> FakeGuest:
        """A machine with this device."""
        return FakeGuest(str(self.path), **options)

    def driver(self, guest: FakeGuest) -> FakeNsmDriver:
        """Its driver, loaded."""
        guest.realize()
        guest.start()
        return FakeNsmDriver(guest)


@pytest.fixture
def nsm_(loop: LoopThread, tmp_path: Path) -> Iterator[NsmRig]:
    rig = NsmRig(loop, tmp_path)
    yield rig
    loop.run(rig.backend.close)
    rig.listener.close()


class VsockRig:
    """A vsock back-end on a real socket; a guest's connection to port P goes to `P.sock`."""

    def __init__(self, loop: LoopThread, directory: Path) -> None:
        self.loop = loop
        self.directory = directory
        self.host_socket = directory / "vsock.sock"
        self.closed: queue.Queue[str | None] = queue.Queue()
        self.listener = listen(directory / "device.sock")
        self.opened: list[socket.socket] = []
        self.backend = loop.run(
            lambda: VsockBackend(
                loop.loop,
                self.listener,
                CID,
                host_socket=self.host_socket,
                port_path=self.port_path,
                on_closed=self.closed.put,
            )
        )

    def port_path(self, port: Port) -> Path | None:
        """Where a port of the parent is."""
        return self.directory / f"{port}.sock" if port < 60000 else None

    def serve(self, port: int) -> socket.socket:
        """Listen on a port of the parent."""
        server = listen(self.directory / f"{port}.sock")
        server.settimeout(SECONDS)
        self.opened.append(server)
        return server

    def accept(self, server: socket.socket) -> socket.socket:
        """Take a connection of the guest."""
        peer, _ = server.accept()
        peer.settimeout(SECONDS)
        self.opened.append(peer)
        return peer

    def client(self) -> socket.socket:
        """A local program's socket, before its command."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(SECONDS)
        client.connect(str(self.host_socket))
        self.opened.append(client)
        return client

    def guest(self, **options: Any) -> FakeGuest:
        """A machine with this device."""
        return FakeGuest(str(self.directory / "device.sock"), queues=(128, 128), config_size=8, **options)

    def driver(self, guest: FakeGuest, **options: Any) -> FakeVsockDriver:
        """Its driver, loaded."""
        guest.realize()
        guest.start()
        return FakeVsockDriver(guest, CID, **options)


@pytest.fixture
def vsock(loop: LoopThread, tmp_path: Path) -> Iterator[VsockRig]:
    rig = VsockRig(loop, tmp_path)
    yield rig
    loop.run(rig.backend.close)
    rig.listener.close()
    for sock in rig.opened:
        sock.close()
