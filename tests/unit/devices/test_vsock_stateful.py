"""The vsock device under any order of events from both sides, real sockets and rings between (devices.md §5).

A guest that keeps the rules, programs of the parent that do as they like, guest buffers that come and go. After each
step: bytes arrive in order and unchanged, credit and the limit of packets are kept, nothing is held beyond its bounds.
At the end both sides read on: all that was sent on a connection that was not reset has arrived, and no descriptor is
left.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from alcove.devices.vsock.credit import BUFFER, MAX_OUTSTANDING
from alcove.devices.vsock.packet import Header, Op, Shutdown
from alcove.testing.fake_drivers import FakeVsockDriver

from .conftest import LoopThread, VsockRig

pytestmark = pytest.mark.slow  # many cases: some twenty seconds for a device

SIZES = st.sampled_from([1, 2, 100, 4096, 65536])
ROOM = st.sampled_from([1500, 4096, 65536, BUFFER])
PATTERN = bytes(n * 7 + n // 251 & 0xFF for n in range(256 * 251)) * 3


def pattern(start: int, length: int) -> bytes:
    """Bytes `start` and on of every stream."""
    start %= 256 * 251
    return PATTERN[start : start + length]


class End:
    """One connection, seen from both of its ends by a test that has them."""

    def __init__(self, own_port: int, port: int, peer: socket.socket, room: int) -> None:
        self.own_port, self.port, self.peer, self.room = own_port, port, peer, room
        self.peer.settimeout(0)
        self.up_sent = self.up_told = self.up_got = 0  # guest → host: by the guest, as the device says, at the host
        self.down_sent = self.down_got = self.down_told = 0  # host → guest: the last is what the guest has said
        self.packets = 0  # with data, since the guest last said something
        self.flags = Shutdown.NONE  # what the guest has ended
        self.host_ended = self.host_closed = False
        self.reset = self.finished = False

    @property
    def alive(self) -> bool:
        """Whether the guest may still send packets for it."""
        return not self.reset and not self.finished

    @property
    def up_room(self) -> int:
        """What a guest that keeps the rules may send."""
        return min(self.room, BUFFER) - (self.up_sent - self.up_told)


class VsockMachine(RuleBasedStateMachine):
    """Guest, device and parent."""

    ends = Bundle("ends")

    def __init__(self) -> None:
        super().__init__()
        self.before = _descriptors()
        self.directory = Path(tempfile.mkdtemp(prefix="vs-"))
        self.loop = LoopThread()
        self.rig = VsockRig(self.loop, self.directory)
        self.guest = self.rig.guest()
        self.driver: FakeVsockDriver = self.rig.driver(self.guest, buffers=60)
        self.owed = 0  # buffers that the guest keeps back
        self.server = self.rig.serve(5000)
        self.all: list[End] = []
        self.next_port = 1
        self.asked: list[Header] = []  # REQUESTs of the host

    # what the guest does

    @rule(target=ends, room=ROOM)
    def guest_connects(self, room: int) -> object:
        """The parent's server takes it."""
        own_port, self.next_port = self.next_port, self.next_port + 1
        answered = self.expect(lambda header: header.dst_port == own_port and header.op == Op.RESPONSE)
        self.driver.send(Op.REQUEST, port=5000, own_port=own_port, buf_alloc=room)
        assert answered()
        return self.opened(End(own_port, 5000, self.rig.accept(self.server), room))

    @rule(target=ends, room=ROOM)
    def host_connects(self, room: int) -> object:
        """The guest accepts."""
        client = self.rig.client()
        own_port, self.next_port = self.next_port, self.next_port + 1
        asked = self.expect(lambda header: header.op == Op.REQUEST and header.dst_port == own_port)
        client.sendall(b"CONNECT %d\n" % own_port)
        assert asked()
        request = self.asked.pop()
        self.driver.send(Op.RESPONSE, port=request.src_port, own_port=own_port, buf_alloc=room)
        answer = client.recv(64)
        assert answer == b"OK %d\n" % request.src_port
        return self.opened(End(own_port, request.src_port, client, room))

    @rule()
    def guest_refuses(self) -> None:
        """The client is hung up on."""
        client = self.rig.client()
        own_port, self.next_port = self.next_port, self.next_port + 1
        asked = self.expect(lambda header: header.op == Op.REQUEST and header.dst_port == own_port)
        client.sendall(b"CONNECT %d\n" % own_port)
        assert asked()
        self.driver.send(Op.RST, port=self.asked.pop().src_port, own_port=own_port)
        assert client.recv(1) == b""
        client.close()

    @rule(end=ends, size=SIZES)
    def guest_sends(self, end: End, size: int) -> None:
        """As much as credit allows."""
        size = min(size, end.up_room)
        if end.alive and size > 0 and not end.flags & Shutdown.SEND:
            data = pattern(end.up_sent, size)
            end.up_sent += size
            self.send(end, Op.RW, payload=data)

    @rule(end=ends)
    def guest_reads(self, end: End) -> None:
        """All it has, and says so."""
        if end.alive:
            self.send(end, Op.CREDIT_UPDATE)

    @rule(end=ends, flags=st.sampled_from([Shutdown.RCV, Shutdown.SEND, Shutdown.BOTH]))
    def guest_shuts(self, end: End, flags: Shutdown) -> None:
        """One direction, or both."""
        if end.alive and end.flags != Shutdown.BOTH:
            end.flags |= flags
            self.send(end, Op.SHUTDOWN, flags=flags)

    @rule(end=consumes(ends))
    def guest_resets(self, end: End) -> None:
        """At once."""
        if end.alive:
            end.reset = True
            self.send(end, Op.RST)

    @rule(end=consumes(ends), size=st.sampled_from([BUFFER + 1, 2 * BUFFER]))
    def guest_breaks_its_credit(self, end: End, size: int) -> None:
        """What the host does not take is bounded: it reads nothing here, so the connection is reset."""
        if not end.alive or end.flags & Shutdown.SEND or end.host_closed:
            return
        for _ in range((end.up_room + size) // 65536 + 8):
            if not end.reset:
                end.up_sent += 65536
                self.send(end, Op.RW, payload=bytes(65536))
                self.drain()
        assert wait_for(lambda: self.drain() or end.reset)

    @rule(count=st.integers(1, 60))
    def guest_keeps_buffers_back(self, count: int) -> None:
        """The next so many are not offered again at once."""
        self.owed = min(self.owed + count, 120)

    @rule(target=ends)
    def guest_offers_again(self) -> object:
        """All that it kept back."""
        self.owed = 0
        self.top_up()
        return multiple()

    # what the parent does

    @rule(end=ends, size=SIZES)
    def host_sends(self, end: End, size: int) -> None:
        """What the socket takes."""
        if end.host_closed or end.host_ended:
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            end.down_sent += end.peer.send(pattern(end.down_sent, size))

    @rule(end=ends, size=SIZES)
    def host_reads(self, end: End, size: int) -> None:
        """What is there."""
        self.take(end, size)

    @rule(end=ends)
    def host_ends(self, end: End) -> None:
        """It sends no more."""
        if not end.host_closed:
            end.host_ended = True
            with contextlib.suppress(OSError):
                end.peer.shutdown(socket.SHUT_WR)

    @rule(end=consumes(ends))
    def host_closes(self, end: End) -> None:
        """With or without unread data."""
        end.host_closed = True
        end.peer.close()

    # what must hold

    @invariant()
    def credit_and_bounds_are_kept(self) -> None:
        """Bytes and packets in flight to the guest; bytes held for the host."""
        self.drain()
        held = sum(stream.held for stream in list(self.rig.backend._streams.values()))
        assert held <= BUFFER * max(len(self.all), 1)
        assert not self.loop.errors
        assert self.rig.closed.empty()

    def teardown(self) -> None:
        """Everything arrives, everything closes."""
        try:
            self.owed = 0
            self.top_up()
            whole = [end for end in self.all if not end.host_closed]
            assert wait_for(lambda: self.all_there(whole)), [vars(end) for end in whole]
            for end in self.all:
                if end.alive:
                    self.send(end, Op.RST)
            assert wait_for(lambda: self.drain() or self.rig.backend.counters.open_now == 0)
            self.drain()
            taken, _ = self.guest.stop()
            assert taken == self.driver._rx._next_used  # every buffer that was taken has come back
        finally:
            self.guest.close()
            self.loop.run(self.rig.backend.close)
            assert self.rig.backend._held.count == 0
            self.loop.close()
            for sock in [*self.rig.opened, self.rig.listener]:
                sock.close()
            shutil.rmtree(self.directory)
        del self.guest, self.driver  # the guest's memory
        assert _descriptors() == self.before

    def all_there(self, ends: list[End]) -> bool:
        """Both sides read on; whether what was sent has arrived."""
        done = True
        self.drain()
        for end in ends:
            self.take(end, 1 << 20)
            if end.alive and end.down_got != end.down_told:
                self.send(end, Op.CREDIT_UPDATE)
            up = end.reset or end.up_got == end.up_sent
            down = not end.alive or end.flags & Shutdown.RCV or end.down_got == end.down_sent
            done = done and bool(up and down)
        return done

    # how it is done

    def opened(self, end: End) -> End:
        """Make the host's socket so small that much of what the guest sends has to wait."""
        self.all.append(end)
        for stream in list(self.rig.backend._streams.values()):
            stream._host._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return end

    def send(self, end: End, op: Op, payload: bytes = b"", flags: int = 0) -> None:
        """Send a packet of this connection; it says what the guest has read."""
        end.down_told, end.packets = end.down_got, 0
        self.driver.send(
            op, port=end.port, own_port=end.own_port, payload=payload, flags=flags, fwd_cnt=end.down_got,
            buf_alloc=end.room,
        )  # fmt: skip

    def take(self, end: End, size: int) -> None:
        """Read at the host's end: what comes is what was sent."""
        if end.host_closed:
            return
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while size > 0 and (data := end.peer.recv(min(size, 65536))):
                if not end.reset:
                    assert data == pattern(end.up_got, len(data))
                end.up_got += len(data)
                size -= len(data)

    def drain(self) -> None:
        """Take every packet that is there."""
        self.loop.run(lambda: None)
        while True:
            try:
                header, payload = self.driver.receive(0, offer=False)
            except TimeoutError:
                self.top_up()
                return
            self.owed_or_offered += 1
            self.packet(header, payload)

    owed_or_offered = 0

    def top_up(self) -> None:
        """Offer the buffers that came back, but for those kept back."""
        count = max(self.owed_or_offered - self.owed, 0)
        if count:
            self.owed_or_offered -= count
            self.driver.offer(count)

    def packet(self, header: Header, payload: bytes) -> None:
        """Check one packet from the device."""
        if header.op == Op.REQUEST:
            self.asked.append(header)
            return
        self.answers.append(header)
        end = next((e for e in self.all if (e.port, e.own_port) == (header.src_port, header.dst_port)), None)
        if end is None:
            return
        if header.op == Op.RST:
            end.finished = end.flags == Shutdown.BOTH
            end.reset = not end.finished
            return
        assert not end.finished
        end.up_told = header.fwd_cnt
        assert end.up_told <= end.up_sent
        if header.op == Op.RW:
            assert payload == pattern(end.down_got, len(payload))
            end.down_got += len(payload)
            end.packets += 1
            assert end.down_got - end.down_told <= end.room
            assert end.packets <= MAX_OUTSTANDING

    answers: list[Header] = []  # noqa: RUF012 - emptied by `expect`

    def expect(self, wanted: Callable[[Header], bool]) -> Callable[[], bool]:
        """A condition: such a packet comes. Buffers kept back are offered for it."""
        self.drain()
        self.answers = []
        self.owed = 0

        def came() -> bool:
            self.drain()
            return any(map(wanted, [*self.answers, *self.asked]))

        return lambda: wait_for(came)


def _descriptors() -> int:
    gc.collect()  # memory maps have descriptors of their own, and go with their last view
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_for(condition: Callable[[], object], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


TestVsock = VsockMachine.TestCase
TestVsock.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
