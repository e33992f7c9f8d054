"""Any front-end, any guest: a device serves, refuses or breaks, and leaks nothing (devices.md §3, §4.1)."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alcove.devices.nsm.backend import NsmBackend
from alcove.devices.nsm.module import NsmModule
from alcove.devices.vhost_user import messages as wire
from alcove.devices.vhost_user.messages import Request
from alcove.devices.vsock.backend import VsockBackend
from alcove.testing.fake_guest import USER_BASE, FakeGuest
from alcove.testing.front_end import FrontEnd
from alcove.testing.step_reactor import StepReactor
from alcove.types import Cid

pytestmark = pytest.mark.slow  # many cases: some twenty seconds for a device

SIZES = (2, 8)  # entries of the two rings
MEMORY = 4 << 20
OWN_DESCRIPTORS = 24  # of the machinery here, and what one device may hold beside them


class SteppedFrontEnd(FrontEnd):
    """A front-end that lets the device act on each message before it looks for the answer."""

    def __init__(self, path: str, reactor: StepReactor) -> None:
        super().__init__(path, timeout=0.02)
        self._reactor = reactor

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send, and let the loop come to rest."""
        super().send_raw(data, fds)
        self._reactor.run()

    def drain(self) -> None:
        """Drop what has been answered."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._socket.recv(1 << 16, socket.MSG_DONTWAIT)

    def hung_up(self) -> bool:
        """Whether the device has hung up, behind whatever it had answered."""
        with contextlib.suppress(ConnectionError):
            while self._socket.recv(1 << 16):
                pass
        return True


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped() -> int:
    """Mappings of guests' memory in this process."""
    return Path("/proc/self/maps").read_text().count("/memfd:guest")


def _memfd(*, sealed: bool) -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 20)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


# what may come in place of an eventfd or of the guest's memory
STRANGE: dict[str, Callable[[], int]] = {
    "eventfd": lambda: os.eventfd(1, os.EFD_CLOEXEC),
    "sealed memory": lambda: _memfd(sealed=True),
    "memory that can shrink": lambda: _memfd(sealed=False),
    "directory": lambda: os.open("/", os.O_RDONLY | os.O_CLOEXEC),
    "null": lambda: os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC),
    "text": lambda: os.open(__file__, os.O_RDONLY | os.O_CLOEXEC),
    "socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
}
INDEX = st.sampled_from([0, 1, 2, 3, 200, 2**32 - 1])
NUMBER = st.sampled_from([0, 1, 2, 3, 8, 64, 1024, 1025, 32768, 65535, 65536, 2**31, 2**32 - 1])
ADDRESS = st.sampled_from(
    [0, 1, 16, USER_BASE, USER_BASE + 0xDFFF0, USER_BASE + 0x10_0000, USER_BASE + MEMORY - 16, 2**63, 2**64 - 16]
)
PAYLOADS = st.one_of(
    st.binary(max_size=64),
    st.builds(wire.VRING_STATE.pack, INDEX, NUMBER),
    st.builds(wire.VRING_ADDRESS.pack, INDEX, NUMBER, ADDRESS, ADDRESS, ADDRESS, ADDRESS),
    st.builds(wire.U64.pack, st.sampled_from([0, 1, 2, 0x100, 0x101, 1 << 30, 0x140000000, 2**64 - 1])),
    st.builds(lambda *row: wire._REGION_COUNT.pack(1, 0) + wire._REGION.pack(*row), ADDRESS, ADDRESS, ADDRESS, ADDRESS),
    st.builds(
        lambda size: wire._REGION_COUNT.pack(1, 0) + wire._REGION.pack(0, size, USER_BASE, 0),
        st.sampled_from([1, 4096, 1 << 20, 1 << 40]),
    ),
)
DESCRIPTORS = st.tuples(  # address, length, flags, next
    st.sampled_from([0, 0x10_0000, MEMORY - 1, 2**64 - 1]),
    st.sampled_from([0, 1, 44, 4096, 2**32 - 1]),
    st.integers(0, 8),
    st.integers(0, 9),
)
REQUESTS = st.one_of(st.sampled_from([int(request) for request in Request]), st.integers(0, 50))


class Device(RuleBasedStateMachine):
    """A back-end with a front-end and a guest that do what they like."""

    def make(self, listener: socket.socket) -> Any:
        """The back-end."""
        raise NotImplementedError

    @initialize()
    def connect(self) -> None:
        """A device that waits for its front-end, and the front-end."""
        gc.collect()
        self.before, self.maps_before = descriptors(), mapped()
        self.directory = Path(tempfile.mkdtemp(prefix="alcove-"))
        self.reactor = StepReactor()
        self.ended: list[str | None] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.directory / "dev"))
        listener.listen()
        self.listener = listener
        self.backend = self.make(listener)
        front = SteppedFrontEnd(str(self.directory / "dev"), self.reactor)
        self.guest = FakeGuest("", queues=SIZES[: self.rings], memory=MEMORY, front_end=front)
        self.front = front
        self.reactor.run()

    rings = 1

    @property
    def over(self) -> bool:
        """Whether the device has ended."""
        return bool(self.ended)

    @rule(restart=st.booleans(), base=st.sampled_from([0, 1, 65535]))
    def start(self, restart: bool, base: int) -> None:
        """What QEMU does, in its order; on a device in whatever state."""
        with contextlib.suppress(OSError):  # it refuses, has hung up or waits for the rest of a message
            if restart:
                self.guest.stop()
            else:
                self.guest.realize()
            self.guest.start(base=base)

    @rule(request=REQUESTS, payload=PAYLOADS, flags=st.sampled_from([1, 1, 1, 9, 5, 0, 2]), kinds=st.lists(
        st.sampled_from(sorted(STRANGE)), max_size=9), cut=st.integers(0, 200))  # fmt: skip
    def message(self, request: int, payload: bytes, flags: int, kinds: list[str], cut: int) -> None:
        """Any message, with any descriptors, in one piece or two."""
        fds = [STRANGE[kind]() for kind in kinds]
        data = wire.HEADER.pack(request, flags, len(payload)) + payload
        try:
            with contextlib.suppress(OSError):
                self.front.send_raw(data[: cut or 1], fds)
                if data[cut or 1 :]:
                    self.front.send_raw(data[cut or 1 :])
                self.front.drain()
        finally:
            for fd in fds:
                os.close(fd)

    @rule(request=st.sampled_from([Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]),
          index=INDEX, kind=st.sampled_from(sorted(STRANGE)))  # fmt: skip
    def ring_descriptor(self, request: Request, index: int, kind: str) -> None:
        """A descriptor for a ring, which may be of any kind."""
        fd = STRANGE[kind]()
        with contextlib.suppress(OSError):
            self.front.send_raw(wire.pack_message(request, wire.U64.pack(index & wire.INDEX_MASK)), [fd])
        os.close(fd)

    @rule(data=st.binary(max_size=50), room=st.sampled_from([1, 8, 44, 3776, 0x3000]))
    def legal(self, data: bytes, room: int) -> None:
        """The guest does what a driver does: something to read, and room for an answer."""
        for queue in self.guest.queues:
            queue.reset()
        with contextlib.suppress(OSError):
            self.guest.stop()
            self.guest.start()
            queue = self.guest.queues[-1]
            queue.add(readable=[data])
            self.guest.queues[0].add(writable=[room])
            queue.kick()
            self.reactor.run()

    @rule(size=st.sampled_from([13, 4097, 2**31, 2**32 - 1]))
    def absurd(self, size: int) -> None:
        """A header that announces more than any message has."""
        with contextlib.suppress(OSError):
            self.front.send_raw(wire.HEADER.pack(Request.SET_MEM_TABLE, 1, size) + b"x")

    @rule(which=INDEX, entry=st.integers(0, 9), fields=DESCRIPTORS)
    def descriptor(self, which: int, entry: int, fields: tuple[int, int, int, int]) -> None:
        """The guest writes any descriptor."""
        queue = self.guest.queues[which % self.rings]
        queue.write_descriptor(entry % queue.size, *fields)

    @rule(which=INDEX, heads=st.lists(st.integers(0, 9), max_size=4), jump=st.sampled_from([0, 0, 0, 1, 9, 40000]))
    def offer(self, which: int, heads: list[int], jump: int) -> None:
        """The guest offers any heads, may jump, and kicks."""
        queue = self.guest.queues[which % self.rings]
        for head in heads:
            queue.offer(head)
        if jump:
            queue.set_available_index(queue._next_available + jump)
        queue.kick()
        self.reactor.run()

    @rule(which=INDEX, at=st.integers(0, 300), content=st.binary(max_size=40))
    def scribble(self, which: int, at: int, content: bytes) -> None:
        """The guest writes over its rings."""
        start = self.guest.queues[which % self.rings].descriptors + at
        self.guest.memory[start : start + len(content)] = content

    @rule()
    def wait(self) -> None:
        """Time passes."""
        self.reactor.fire()

    @precondition(lambda self: not self.over)
    @rule()
    def hang_up(self) -> None:
        """The machine is gone."""
        self.front.close()
        self.reactor.run()
        assert len(self.ended) == 1

    @invariant()
    def bounded(self) -> None:
        """It holds a bounded number of descriptors and mappings, and ends at most once."""
        if not hasattr(self, "ended"):
            return
        assert len(self.ended) <= 1
        assert all(reason is None or reason for reason in self.ended)
        assert descriptors() <= self.before + OWN_DESCRIPTORS
        assert mapped() <= self.maps_before + 1 + wire.MAX_REGIONS

    @invariant()
    def a_broken_device_lets_go(self) -> None:
        """Once it has ended the front-end is hung up on."""
        if getattr(self, "ended", None):
            assert self.front.fileno() < 0 or self.front.hung_up()

    def teardown(self) -> None:
        """Not a descriptor, a mapping or a watch is left, whether it broke or is closed now."""
        if not hasattr(self, "backend"):
            return
        self.backend.close()
        self.listener.close()
        self.guest.close()
        assert self.reactor.watched() == 0
        self.reactor.close()
        shutil.rmtree(self.directory)
        del self.guest, self.backend
        gc.collect()
        assert descriptors() == self.before
        assert mapped() == self.maps_before


class NsmDevice(Device):
    """The NSM."""

    def make(self, listener: socket.socket) -> NsmBackend:
        """With a module that signs nothing."""
        module = NsmModule("i-1-enc2", {}, lambda *_: b"document", bytes)
        return NsmBackend(self.reactor, listener, module, self.ended.append)


class VsockDevice(Device):
    """The vsock, whose every port of the parent is closed."""

    rings = 2

    def make(self, listener: socket.socket) -> VsockBackend:
        """For CID 16."""
        return VsockBackend(
            self.reactor,
            listener,
            Cid(16),
            host_socket=self.directory / "vsock.sock",
            port_path=lambda _port: None,
            on_closed=self.ended.append,
        )


_SETTINGS = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
TestNsmDevice = NsmDevice.TestCase
TestNsmDevice.settings = _SETTINGS
TestVsockDevice = VsockDevice.TestCase
TestVsockDevice.settings = _SETTINGS
