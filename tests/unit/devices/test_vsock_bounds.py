"""What a guest, a reader or a client can make the vsock device hold, and whom it can make wait (devices.md §5)."""

from __future__ import annotations

import contextlib
import gc
import resource
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from alcove.devices.vsock.backend import RESERVED_DESCRIPTORS, connection_limit
from alcove.devices.vsock.credit import BUFFER
from alcove.devices.vsock.muxer import MAX_CONNECTIONS
from alcove.devices.vsock.outbox import MAX_BUFFERS, QUANTUM
from alcove.devices.vsock.packet import Header, Op, Shutdown
from alcove.testing.fake_drivers import GUEST_BUFFER, FakeVsockDriver
from alcove.testing.fake_guest import FakeGuest

from .conftest import CID, SECONDS, VsockRig

pytestmark = pytest.mark.slow

MANY = 2000
PER_CONNECTION = 16 * 1024  # bytes of this process's heap, generously: it is about 6 KiB


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for both ends of many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3 * MANY:
        pytest.skip(f"needs {3 * MANY} descriptors, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3 * MANY), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_stream(
    rig: VsockRig, driver: FakeVsockDriver, server: socket.socket, own_port: int, **options: int
) -> socket.socket:
    """A guest's connection to a port that is served already; it comes from `own_port`."""
    driver.send(Op.REQUEST, port=5000, own_port=own_port, **options)
    while driver.receive()[0].op != Op.RESPONSE:
        pass
    return rig.accept(server)


def burst(guest: FakeGuest, headers: list[Header]) -> None:
    """Send packets without data, a ring's half at a time."""
    queue = guest.queues[1]
    for start in range(0, len(headers), 64):
        part = headers[start : start + 64]
        for header in part:
            queue.add(readable=[header.pack()])
        queue.kick()
        for _ in part:
            queue.wait_used()


def header(op: Op, own_port: int, *, port: int = 5000) -> Header:
    """A packet of the guest without data."""
    return Header(CID, 3, own_port, port, 0, 1, op, 0, GUEST_BUFFER, 0)


def settle(rig: VsockRig) -> None:
    """Let the device do what it can do now."""
    for _ in range(4):
        rig.loop.run(lambda: None)


def descriptors_open() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_for(condition: object, seconds: float = SECONDS) -> bool:
    """Whether it comes true in time."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_two_thousand_connections_stay_open_in_bounded_memory(vsock: VsockRig, descriptors: None) -> None:
    """All of them open, the last and the first carry bytes both ways, and each costs a few KiB."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest, buffers=100)
        server = vsock.serve(5000)
        peers: list[socket.socket] = []
        acceptor = threading.Thread(target=lambda: [peers.append(vsock.accept(server)) for _ in range(MANY)])
        acceptor.start()
        gc.collect()
        tracemalloc.start()
        answers = 0
        for start in range(0, MANY, 50):
            burst(guest, [header(Op.REQUEST, 1000 + n) for n in range(start, start + 50)])
            for _ in range(50):
                answers += driver.receive()[0].op == Op.RESPONSE
        acceptor.join(SECONDS)
        heap, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert answers == len(peers) == vsock.backend.counters.open_now == MANY
        assert heap / MANY < PER_CONNECTION
        for number in (0, MANY - 1):
            driver.send(Op.RW, port=5000, own_port=1000 + number, payload=b"up")
            assert peers[number].recv(10) == b"up"
            peers[number].sendall(b"down")
            received, payload = driver.receive()
            assert (received.dst_port, payload) == (1000 + number, b"down")


class Bulk:
    """Streams of the host that always have more to send, to a guest that offers few buffers at a time."""

    def __init__(self, rig: VsockRig, guest: FakeGuest, streams: int) -> None:
        self.rig = rig
        self.driver = rig.driver(guest, buffers=100)
        self.server = rig.serve(5000)
        self.small = open_stream(rig, self.driver, self.server, 1)
        self._got = dict.fromkeys(range(100, 100 + streams), 0)
        self._peers = [open_stream(rig, self.driver, self.server, own_port) for own_port in self._got]
        self.order: list[int] = []  # whose packets came, in order
        self.fill()
        self.receive(1000)  # until the guest has no buffers left and every stream waits for some
        self.order.clear()

    def fill(self) -> None:
        """Write until no socket takes more."""
        for peer in self._peers:
            peer.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while peer.send(bytes(65536)):
                    pass
        settle(self.rig)

    def receive(self, count: int) -> None:
        """Take so many packets, or what there is."""
        for _ in range(count):
            try:
                received, payload = self.driver.receive(0.1, offer=False)
            except TimeoutError:
                settle(self.rig)  # it may only have been slow
                try:
                    received, payload = self.driver.receive(0, offer=False)
                except TimeoutError:
                    return
            if received.op == Op.RW:
                self.order.append(received.dst_port)
            if received.dst_port in self._got:
                self._got[received.dst_port] += len(payload)

    def round(self) -> None:
        """The guest reads all it has, and offers room for one turn."""
        for own_port, count in self._got.items():
            self.driver.send(Op.CREDIT_UPDATE, port=5000, own_port=own_port, fwd_cnt=count)
        settle(self.rig)
        self.driver.offer(QUANTUM)
        self.receive(QUANTUM)
        self.fill()


@pytest.mark.parametrize("streams", [2, 9])
def test_a_byte_waits_for_one_turn_of_each_bulk_stream_and_no_longer(vsock: VsockRig, streams: int) -> None:
    """Between the host's write and its arrival no bulk stream is served twice, however much they have to send."""
    with vsock.guest() as guest:
        bulk = Bulk(vsock, guest, streams)
        bulk.small.sendall(b"x")
        settle(vsock)
        for _ in range(10 * streams):
            bulk.round()
            if 1 in bulk.order:
                break
        turns = [(port, len(list(packets))) for port, packets in groupby(bulk.order[: bulk.order.index(1)])]
        assert len(turns) <= streams + 1  # one of each, and the one that was under way
        assert all(length <= MAX_BUFFERS for _, length in turns)


@pytest.mark.parametrize("streams", [3, 8])
def test_bulk_streams_get_equal_shares(vsock: VsockRig, streams: int) -> None:
    """In a row of turns every stream has as many as every other, give or take two."""
    with vsock.guest() as guest:
        bulk = Bulk(vsock, guest, streams)
        for _ in range(8 * streams):
            bulk.round()
        shares = [bulk.order.count(own_port) for own_port in range(100, 100 + streams)]
        assert sum(shares) >= 7 * streams * QUANTUM
        assert max(shares) - min(shares) <= 2 * QUANTUM


def test_readers_that_do_not_read_hold_up_nobody_else(vsock: VsockRig) -> None:
    """With three connections at the end of their credit, a fourth carries bytes both ways."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        server = vsock.serve(5000)
        for own_port in (1, 2, 3):
            open_stream(vsock, driver, server, own_port)
            for _ in range(BUFFER // 65536):
                driver.send(Op.RW, port=5000, own_port=own_port, payload=bytes(65536))
        peer = open_stream(vsock, driver, server, 4)
        driver.send(Op.RW, port=5000, own_port=4, payload=b"ping")
        assert peer.recv(10) == b"ping"
        peer.sendall(b"pong")
        while (received := driver.receive())[0].dst_port != 4:
            pass
        assert received[1] == b"pong"


def test_the_connection_that_holds_most_is_reset_at_the_limit_of_all(
    vsock: VsockRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAX_HELD bounds what all slow readers of an enclave hold together; the others go on."""
    monkeypatch.setattr("alcove.devices.vsock.backend.MAX_HELD", 1000)
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        server = vsock.serve(5000)
        open_stream(vsock, driver, server, 1)
        peer = open_stream(vsock, driver, server, 2)
        for _ in range(BUFFER // 65536):
            driver.send(Op.RW, port=5000, own_port=1, payload=bytes(65536))
        while (received := driver.receive()[0]).op == Op.CREDIT_UPDATE:
            pass
        assert (received.op, received.dst_port) == (Op.RST, 1)
        assert vsock.backend._held.count == 0
        driver.send(Op.RW, port=5000, own_port=2, payload=b"still here")
        assert peer.recv(100) == b"still here"


def test_requests_that_no_listener_takes_are_bounded(vsock: VsockRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond MAX_DIALLING a REQUEST is refused at once, and a place is free again after an RST."""
    monkeypatch.setattr("alcove.devices.vsock.muxer.MAX_DIALLING", 2)
    monkeypatch.setattr("alcove.devices.vsock.dialer._LAST_RETRY", SECONDS)
    server = vsock.serve(5000)
    server.listen(0)
    filler = socket.socket(socket.AF_UNIX)
    filler.connect(str(vsock.directory / "5000.sock"))
    vsock.opened.append(filler)
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        burst(guest, [header(Op.REQUEST, own_port) for own_port in (1, 2, 3)])
        received, _ = driver.receive()
        assert (received.op, received.dst_port) == (Op.RST, 3)
        burst(guest, [header(Op.RST, 1), header(Op.REQUEST, 4)])
        vsock.accept(server)
        vsock.accept(server)
        opened = {driver.receive()[0].dst_port for _ in range(1)}
        vsock.accept(server)
        opened.add(driver.receive()[0].dst_port)
        assert opened == {2, 4}


def test_a_guest_that_opens_and_never_reads_is_asked_ever_more_seldom(vsock: VsockRig) -> None:
    """The host's writer blocks, nothing is kept here, and CREDIT_REQUESTs come in doubling intervals."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest, buffers=120)
        peer = open_stream(vsock, driver, vsock.serve(5000), 1)
        peer.settimeout(0.2)
        with pytest.raises(TimeoutError):
            peer.sendall(bytes(16 << 20))
        got = asked = 0
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                received, payload = driver.receive(0.05)
            except TimeoutError:
                continue
            if payload:
                got += len(payload)
                deadline = time.monotonic() + 0.6
            asked += received.op == Op.CREDIT_REQUEST
        assert got == GUEST_BUFFER
        assert 1 <= asked <= 8
        assert vsock.backend._held.count == 0


def test_floods_of_requests_and_resets_leave_nothing(vsock: VsockRig) -> None:
    """Thousands of REQUESTs and RSTs, of one pair and of many: no connection, no descriptor and no answer too many."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest, buffers=120)
        server = vsock.serve(5000)
        server.listen(512)
        before = descriptors_open()
        burst(guest, [header(Op.RST, 7)] * 1000)
        for _ in range(20):
            burst(guest, [header(op, 7) for op in (Op.REQUEST, Op.RST)] * 25)
            for own_port in range(50):
                burst(guest, [header(Op.REQUEST, 100 + own_port), header(Op.RST, 100 + own_port)])
            while True:
                try:
                    assert driver.receive(0)[0].op in {Op.RESPONSE, Op.RST}
                except TimeoutError:
                    break
            drop_all(server)
        settle(vsock)
        drop_all(server)
        assert vsock.backend.counters.open_now == 0
        assert wait_for(lambda: descriptors_open() == before)


def test_without_descriptors_a_request_is_refused_and_later_ones_are_served(vsock: VsockRig) -> None:
    """A supervisor at its limit of descriptors answers RST, and goes on when there are some again."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        server = vsock.serve(5000)
        open_stream(vsock, driver, server, 3)
        settle(vsock)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        fillers = [socket.socket() for _ in range(highest + 1 - descriptors_open())]
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 + max(sock.fileno() for sock in [*fillers, server]), hard))
        try:
            while True:
                fillers.append(socket.socket())
        except OSError:
            driver.send(Op.REQUEST, port=5000, own_port=1)
            refused, _ = driver.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                filler.close()
        assert (refused.op, refused.dst_port) == (Op.RST, 1)
        open_stream(vsock, driver, server, 2)


def test_connections_leave_descriptors_for_the_rest_of_the_supervisor(
    vsock: VsockRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where few descriptors are allowed, connections are refused before the control socket has none left."""
    monkeypatch.setattr("resource.getrlimit", lambda _which: (1024, 1 << 20))
    assert connection_limit() == 1024 - RESERVED_DESCRIPTORS
    monkeypatch.setattr("resource.getrlimit", lambda _which: (64, 64))
    assert connection_limit() == 32
    monkeypatch.setattr("resource.getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert connection_limit() == MAX_CONNECTIONS


def drop_all(server: socket.socket) -> None:
    """Close every connection that waits at a listener."""
    server.settimeout(0)
    while True:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return


def test_a_guest_without_buffers_cannot_fill_the_line(vsock: VsockRig) -> None:
    """A stream that waited for a buffer leaves the line when it is gone, however often that happens."""
    with vsock.guest() as guest:
        vsock.driver(guest, buffers=0)
        server = vsock.serve(5000)
        for _ in range(20):
            burst(guest, [header(Op.REQUEST, 7)])
            peer = vsock.accept(server)
            peer.sendall(b"for nobody")
            settle(vsock)
        assert len(vsock.backend._outbox._line) == 1
        assert len(vsock.backend._streams) == 1


def test_a_server_that_dies_in_the_middle_ends_its_connection_alone(vsock: VsockRig) -> None:
    """With unread data behind it the guest learns of the end, its port is free, and later requests are refused."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        server = vsock.serve(5000)
        other = open_stream(vsock, driver, server, 2)
        peer = open_stream(vsock, driver, server, 1)
        driver.send(Op.RW, port=5000, own_port=1, payload=bytes(65536))
        peer.close()
        server.close()
        (vsock.directory / "5000.sock").unlink()
        driver.send(Op.RW, port=5000, own_port=1, payload=bytes(65536))
        received, _ = driver.receive()
        while received.op == Op.SHUTDOWN and received.flags != Shutdown.BOTH:
            received, _ = driver.receive()
        assert received.dst_port == 1
        assert received.op in {Op.RST, Op.SHUTDOWN}
        driver.send(Op.REQUEST, port=5000, own_port=3)
        while (received := driver.receive()[0]).dst_port != 3:
            pass
        assert received.op == Op.RST
        driver.send(Op.RW, port=5000, own_port=2, payload=b"here")
        assert other.recv(10) == b"here"


def test_idle_clients_of_the_hybrid_socket_do_not_lock_others_out(vsock: VsockRig) -> None:
    """Beyond the limit of clients without a command the oldest one goes, so that who sends a command gets through."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        idle = [vsock.client() for _ in range(128)]
        settle(vsock)
        client = vsock.client()
        client.sendall(b"CONNECT 7000\n")
        assert driver.receive()[0].op == Op.REQUEST
        assert idle[0].recv(1) == b""


def test_a_client_that_dawdles_is_hung_up_on(vsock: VsockRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit is for the whole command: a byte now and then does not extend it."""
    monkeypatch.setattr("alcove.devices.vsock.hybrid.COMMAND_SECONDS", 0.2)
    client = vsock.client()

    def dawdle() -> None:
        for byte in b"CONNECT          " * 10:
            client.send(bytes([byte]))
            time.sleep(0.02)

    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        dawdle()


def test_packets_taken_are_announced_soon_and_in_batches(vsock: VsockRig) -> None:
    """One packet's completion interrupts within moments; a burst's completions come with few interrupts."""
    with vsock.guest() as guest:
        vsock.driver(guest)
        queue = guest.queues[1]
        while queue.wait_interrupt(0.1):
            pass
        queue.add(readable=[header(Op.RST, 7).pack()])
        queue.kick()
        assert queue.wait_interrupt(5)
        assert queue.get_used() is not None
        interrupts = 0
        for _ in range(10):
            queue.add(readable=[header(Op.RST, 7).pack()])
            queue.kick()
            settle(vsock)
        while queue.wait_interrupt(0.1):
            interrupts += 1
        assert 1 <= interrupts < 10
