"""vsock over real sockets on both sides, with guest memory and rings between (devices.md §5)."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest

from alcove.devices.vsock.credit import BUFFER, MAX_OUTSTANDING
from alcove.devices.vsock.handshake import parse_peer_name
from alcove.devices.vsock.muxer import MAX_OFFERED
from alcove.devices.vsock.packet import Header, Op, Shutdown
from alcove.testing.fake_drivers import FakeVsockDriver
from alcove.testing.fake_guest import FakeGuest
from alcove.types import Cid

from .conftest import CID, SECONDS, VsockRig


def connect(rig: VsockRig, driver: FakeVsockDriver, port: int = 5000, **options: int) -> socket.socket:
    """A guest's connection to a port of the parent, and the parent's end of it."""
    server = rig.serve(port)
    driver.send(Op.REQUEST, port=port, **options)
    header, _ = driver.receive()
    assert header.op == Op.RESPONSE
    return rig.accept(server)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        assert chunk, f"the end after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


def test_the_device_tells_the_guest_its_cid(vsock: VsockRig) -> None:
    """The configuration space is the CID; realize fails in QEMU without it."""
    with vsock.guest() as guest:
        guest.realize()
        assert struct.unpack("<Q", guest.config) == (CID,)


@pytest.mark.parametrize("cid", [2, 3])
def test_a_guest_connects_to_the_parent_under_both_cids(vsock: VsockRig, cid: int) -> None:
    """The answer comes from the CID and port that the guest addressed."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        vsock.serve(5000)
        driver.send(Op.REQUEST, port=5000, own_port=77, cid=cid)
        header, _ = driver.receive()
        assert (header.op, header.src_cid, header.src_port, header.dst_cid, header.dst_port) == (
            Op.RESPONSE, cid, 5000, CID, 77,
        )  # fmt: skip
        assert header.buf_alloc == BUFFER


def test_bytes_go_both_ways(vsock: VsockRig) -> None:
    """What the guest sends arrives, in any cut of the packet, and what the host sends comes back."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        peer = connect(vsock, driver)
        for cut in (None, 10, 44, 46):
            driver.send(Op.RW, port=5000, payload=b"hello", cut=cut)
            assert peer.recv(100) == b"hello"
        peer.sendall(b"world")
        header, payload = driver.receive()
        assert (header.op, payload, header.fwd_cnt) == (Op.RW, b"world", 20)


def test_the_server_learns_who_the_guest_is(vsock: VsockRig) -> None:
    """The peer address of the accepted socket names CID and port."""
    with vsock.guest() as guest:
        peer = connect(vsock, vsock.driver(guest), own_port=4242)
        assert parse_peer_name(peer.getpeername()) == (CID, 4242)


@pytest.mark.parametrize(
    "packet",
    [
        {"op": Op.REQUEST, "port": 5001},  # nobody listens
        {"op": Op.REQUEST, "port": 60001},  # not allowed
        {"op": Op.REQUEST, "port": 5001, "kind": 2},  # seqpacket
        {"op": Op.REQUEST, "port": 5001, "cid": 17},  # another enclave
        {"op": Op.RW, "port": 5001, "payload": b"x"},  # unknown connection
        {"op": Op.SHUTDOWN, "port": 5001, "flags": 3},
    ],
)
def test_what_cannot_be_is_refused_at_once(vsock: VsockRig, packet: dict[str, object]) -> None:
    """RST, from the address and with the type of the refused packet."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        driver.send(**packet)  # type: ignore[arg-type]
        header, _ = driver.receive()
        assert (header.op, header.src_port, header.dst_port) == (Op.RST, packet["port"], 1000)
        assert header.src_cid == packet.get("cid", 3)
        assert header.type == packet.get("kind", 1)


def test_an_rst_and_a_stranger_get_no_answer(vsock: VsockRig) -> None:
    """RST is never answered, and a packet with another source CID is dropped."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        driver.send(Op.RST, port=5001)
        driver.send(Op.REQUEST, port=5001, src_cid=99)
        with pytest.raises(TimeoutError):
            driver.receive(0.1)


def test_the_guest_half_closes(vsock: VsockRig) -> None:
    """After SHUTDOWN SEND the host reads to the end and can still answer; its end then finishes both ways."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        peer = connect(vsock, driver)
        driver.send(Op.RW, port=5000, payload=b"question")
        driver.send(Op.SHUTDOWN, port=5000, flags=Shutdown.SEND)
        assert read_exactly(peer, 8) == b"question"
        assert peer.recv(1) == b""
        peer.sendall(b"answer")
        assert driver.receive()[1] == b"answer"
        peer.close()
        header, _ = driver.receive()
        assert (header.op, header.flags) == (Op.SHUTDOWN, Shutdown.BOTH)
        driver.send(Op.RST, port=5000)
        with pytest.raises(TimeoutError):
            driver.receive(0.05)


def test_the_host_half_closes(vsock: VsockRig) -> None:
    """The host's end of file is SHUTDOWN SEND alone, and the guest's remaining output still arrives."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        peer = connect(vsock, driver)
        peer.sendall(b"last")
        peer.shutdown(socket.SHUT_WR)
        assert driver.receive()[1] == b"last"
        header, _ = driver.receive()
        assert (header.op, header.flags) == (Op.SHUTDOWN, Shutdown.SEND)
        driver.send(Op.RW, port=5000, payload=b"still here")
        assert read_exactly(peer, 10) == b"still here"
        driver.send(Op.SHUTDOWN, port=5000, flags=Shutdown.BOTH)
        assert driver.receive()[0].op == Op.RST
        assert peer.recv(1) == b""


def test_a_close_delivers_everything_and_frees_the_port_at_once(vsock: VsockRig) -> None:
    """SHUTDOWN with both flags is answered with RST, after the data is with the host."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        peer = connect(vsock, driver)
        driver.send(Op.RW, port=5000, payload=b"x" * 60000)
        driver.send(Op.SHUTDOWN, port=5000, flags=Shutdown.BOTH)
        assert driver.receive()[0].op == Op.RST
        assert len(read_exactly(peer, 60000)) == 60000
        assert peer.recv(1) == b""


def test_a_reset_by_the_guest_still_delivers_what_came_before(vsock: VsockRig) -> None:
    """Data that the host had not read when the guest reset is not lost."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        peer = connect(vsock, driver)
        for _ in range(4):
            driver.send(Op.RW, port=5000, payload=b"x" * 65536)
        driver.send(Op.RST, port=5000)
        assert len(read_exactly(peer, 4 * 65536)) == 4 * 65536
        assert peer.recv(1) == b""


def test_a_host_that_stops_taking_makes_the_guest_deaf_not_dead(vsock: VsockRig) -> None:
    """Closing with unread output behind: the guest gets what was sent, and learns that nobody reads."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        peer = connect(vsock, driver)
        peer.shutdown(socket.SHUT_RD)
        driver.send(Op.RW, port=5000, payload=b"unheard")
        header, _ = driver.receive()
        assert (header.op, header.flags) == (Op.SHUTDOWN, Shutdown.RCV)
        peer.sendall(b"bye")
        peer.close()
        assert driver.receive()[1] == b"bye"
        header, _ = driver.receive()
        assert (header.op, header.flags) == (Op.SHUTDOWN, Shutdown.BOTH)


def test_a_slow_host_holds_no_more_than_the_credit(vsock: VsockRig) -> None:
    """`fwd_cnt` counts only what the host took; a guest that ignores it is reset."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        connect(vsock, driver)
        sent = 0
        while sent < 4 * BUFFER:
            driver.send(Op.RW, port=5000, payload=b"x" * 32768)
            sent += 32768
            try:
                header, _ = driver.receive(0.01)
            except TimeoutError:
                continue
            if header.op == Op.RST:
                break
            assert header.op == Op.CREDIT_UPDATE
            assert sent - header.fwd_cnt <= BUFFER
        else:
            pytest.fail("the device took four times its buffer")


@pytest.mark.parametrize("buf_alloc", [65536, 262144, 1 << 24])
def test_a_large_transfer_from_the_guest_never_stalls(vsock: VsockRig, buf_alloc: int) -> None:
    """A guest that keeps to min(its own, our) buffer gets every update it needs (devices.md §5.3)."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        peer = connect(vsock, driver, buf_alloc=buf_alloc)
        total, chunk, sent, forwarded = 4 << 20, 16384, 0, 0
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(read_exactly(peer, total)))
        reader.start()
        while sent < total:
            while min(buf_alloc, BUFFER) - (sent - forwarded) < chunk:
                header, _ = driver.receive()
                assert header.op == Op.CREDIT_UPDATE
                forwarded = header.fwd_cnt
            driver.send(Op.RW, port=5000, payload=struct.pack("<I", sent // chunk) * (chunk // 4), buf_alloc=buf_alloc)
            sent += chunk
        reader.join(SECONDS)
        assert received[0] == b"".join(struct.pack("<I", i) * (chunk // 4) for i in range(total // chunk))


def test_a_large_transfer_to_the_guest_keeps_to_its_credit(vsock: VsockRig) -> None:
    """Never more than peer_free bytes, cut to the guest's buffers, and all of it in order."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest, buffers=100)
        peer = connect(vsock, driver, buf_alloc=BUFFER)
        total = 2 << 20
        data = b"".join(struct.pack("<I", i) for i in range(total // 4))
        writer = threading.Thread(target=peer.sendall, args=(data,))
        writer.start()
        got, told = bytearray(), 0
        while len(got) < total:
            try:
                header, payload = driver.receive(0.02)
            except TimeoutError:
                header = None
            if header is not None and header.op == Op.RW:
                got += payload
                assert len(got) - told <= BUFFER
                if len(got) - told < 200000:
                    continue
            driver.send(Op.CREDIT_UPDATE, port=5000, fwd_cnt=len(got))
            told = len(got)
        writer.join(SECONDS)
        assert bytes(got) == data


def test_without_credit_the_device_asks_and_waits(vsock: VsockRig) -> None:
    """No data beyond the guest's buffer; CREDIT_REQUEST comes, and an update releases the rest."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        peer = connect(vsock, driver, buf_alloc=10)
        peer.sendall(b"0123456789abcdef")
        assert driver.receive()[1] == b"0123456789"
        assert driver.receive()[0].op == Op.CREDIT_REQUEST
        driver.send(Op.CREDIT_UPDATE, port=5000, fwd_cnt=10, buf_alloc=10)
        header, payload = driver.receive()
        while header.op == Op.CREDIT_REQUEST:
            header, payload = driver.receive()
        assert payload == b"abcdef"


def test_a_credit_request_is_always_answered(vsock: VsockRig) -> None:
    """Also when nothing changed."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        connect(vsock, driver)
        for _ in range(2):
            driver.send(Op.CREDIT_REQUEST, port=5000)
            assert driver.receive()[0].op == Op.CREDIT_UPDATE


def test_small_packets_stay_far_from_the_guests_limit(vsock: VsockRig) -> None:
    """At most 128 packets are outstanding (devices.md §5.3, second limit), and the guest is asked at half of them."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest, buffers=8)
        peer = connect(vsock, driver)
        packets, asked_at = 0, []
        for _ in range(2 * MAX_OUTSTANDING):
            peer.send(b"x")
            try:
                while driver.receive(0.5)[0].op == Op.CREDIT_REQUEST:
                    asked_at.append(packets)
            except TimeoutError:
                break
            packets += 1
        assert packets == MAX_OUTSTANDING
        assert asked_at[0] == MAX_OUTSTANDING // 2
        driver.send(Op.CREDIT_UPDATE, port=5000, fwd_cnt=packets)
        while (received := driver.receive())[0].op == Op.CREDIT_REQUEST:
            pass
        assert received[1].strip(b"x") == b""


def test_a_host_program_connects_to_the_guest(vsock: VsockRig) -> None:
    """CONNECT, REQUEST from CID 3, RESPONSE, OK; bytes behind the command are not lost."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        client = vsock.client()
        client.sendall(b"connect 7000\nearly")
        request, _ = driver.receive()
        assert (request.op, request.src_cid, request.dst_port) == (Op.REQUEST, 3, 7000)
        assert 2**30 <= request.src_port < 2**31
        driver.send(Op.RESPONSE, port=request.src_port, own_port=7000)
        assert client.recv(100) == b"OK %d\n" % request.src_port
        assert driver.receive()[1] == b"early"
        driver.send(Op.RW, port=request.src_port, own_port=7000, payload=b"reply")
        assert client.recv(100) == b"reply"


def test_a_refused_host_program_is_hung_up_on(vsock: VsockRig) -> None:
    """RST instead of RESPONSE closes the socket without an answer."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        client = vsock.client()
        client.sendall(b"CONNECT 7000\n")
        request, _ = driver.receive()
        driver.send(Op.RST, port=request.src_port, own_port=7000)
        assert client.recv(100) == b""


def test_a_guest_that_does_not_answer_is_given_up(vsock: VsockRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time limit the client's socket closes and the guest gets RST."""
    monkeypatch.setattr("alcove.devices.vsock.stream.REQUEST_SECONDS", 0.05)
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        client = vsock.client()
        client.sendall(b"CONNECT 7000\n")
        assert driver.receive()[0].op == Op.REQUEST
        assert driver.receive()[0].op == Op.RST
        assert client.recv(1) == b""


def test_before_the_guest_runs_a_client_is_given_up_and_nothing_is_left(
    vsock: VsockRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that never left is taken back: the guest sees nothing of it."""
    monkeypatch.setattr("alcove.devices.vsock.stream.REQUEST_SECONDS", 0.05)
    client = vsock.client()
    client.sendall(b"CONNECT 7000\n")
    assert client.recv(1) == b""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        with pytest.raises(TimeoutError):
            driver.receive(0.05)


def test_a_crowd_of_host_programs_takes_turns(vsock: VsockRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest has little time for each, so it is asked by few at a time; the others are not refused: they wait."""
    monkeypatch.setattr("alcove.devices.vsock.stream.REQUEST_SECONDS", SECONDS)  # the guest here is no faster than that
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        clients = [vsock.client() for _ in range(MAX_OFFERED + 10)]
        for client in clients:
            client.sendall(b"CONNECT 7000\n")
        requests = [driver.receive()[0] for _ in range(MAX_OFFERED)]
        with pytest.raises(TimeoutError):
            driver.receive(0.2)
        driver.send(Op.RESPONSE, port=requests[0].src_port, own_port=7000)
        driver.send(Op.RST, port=requests[1].src_port, own_port=7000)
        requests += [driver.receive()[0] for _ in range(2)]
        for request in requests[2:]:
            driver.send(Op.RESPONSE, port=request.src_port, own_port=7000)
        for _ in range(8):
            request = driver.receive()[0]
            driver.send(Op.RESPONSE, port=request.src_port, own_port=7000)
        answers = [client.recv(100) for client in clients]
        assert sum(answer.startswith(b"OK ") for answer in answers) == MAX_OFFERED + 9
        assert answers.count(b"") == 1


@pytest.mark.parametrize("command", [b"HELLO\n", b"CONNECT x\n", b"CONNECT 4294967296\n", b"C" * 32, b"CONNECT 1"])
def test_a_bad_command_is_hung_up_on(vsock: VsockRig, command: bytes) -> None:
    """Anything but CONNECT and a port, in 32 bytes, closes the socket."""
    client = vsock.client()
    client.sendall(command)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


def test_a_busy_server_is_tried_again_without_blocking(vsock: VsockRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog on the host delays the guest's connection, and nothing else."""
    monkeypatch.setattr("alcove.devices.vsock.dialer._LAST_RETRY", SECONDS)
    server = vsock.serve(5000)
    server.listen(0)
    filler = socket.socket(socket.AF_UNIX)
    filler.connect(str(vsock.directory / "5000.sock"))
    vsock.opened.append(filler)
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        driver.send(Op.REQUEST, port=5000)
        driver.send(Op.REQUEST, port=5001, own_port=1001)
        assert driver.receive()[0].dst_port == 1001
        vsock.accept(server)
        assert driver.receive()[0].op == Op.RESPONSE


def test_a_request_for_a_taken_pair_replaces_the_old_connection(vsock: VsockRig) -> None:
    """The old host socket ends, the new one works (devices.md §5.4 rule 8)."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        server = vsock.serve(5000)
        driver.send(Op.REQUEST, port=5000)
        old = vsock.accept(server)
        driver.receive()
        driver.send(Op.REQUEST, port=5000)
        new = vsock.accept(server)
        assert driver.receive()[0].op == Op.RESPONSE
        assert old.recv(1) == b""
        driver.send(Op.RW, port=5000, payload=b"new")
        assert new.recv(10) == b"new"


def test_a_length_beyond_the_buffers_resets_the_connection(vsock: VsockRig) -> None:
    """The packet is dropped, its connection reset; the device goes on."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        peer = connect(vsock, driver)
        driver.send(Op.RW, port=5000, payload=b"abc", length=4)
        assert driver.receive()[0].op == Op.RST
        assert peer.recv(1) == b""
        connect(vsock, driver, 5001)


def test_tiny_guest_buffers_carry_control_packets_alone(vsock: VsockRig) -> None:
    """Buffers below 44 bytes come back empty; one of exactly 44 carries a header."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest, buffers=1, buffer_size=43)
        queue = guest.queues[0]
        vsock.serve(5000)
        driver.send(Op.REQUEST, port=5000)
        assert queue.wait_used()[2] == 0
        queue.add(writable=[20, 24])
        queue.kick()
        assert queue.wait_used()[2] == 44


def test_replies_do_not_pile_up_when_the_guest_takes_none(vsock: VsockRig) -> None:
    """Without RX buffers the device stops taking packets, and resumes when buffers come."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest, buffers=0)
        taken = _send_until_stalled(guest, 1000)
        assert 200 < taken < 300
        driver.offer(100)
        guest.queues[1].wait_used()
        assert driver.receive()[0].op == Op.RST


def _send_until_stalled(guest: FakeGuest, most: int) -> int:
    """Requests that the device took before it stopped taking them."""
    for own_port in range(most):
        guest.queues[1].add(readable=[Header(CID, 3, own_port, 60001, 0, 1, Op.REQUEST, 0, BUFFER, 0).pack()])
        guest.queues[1].kick()
        try:
            guest.queues[1].wait_used(1)
        except TimeoutError:
            return own_port
    return most


def test_a_restarted_guest_finds_no_old_connections(vsock: VsockRig) -> None:
    """After a reset with empty rings every socket of before is closed."""
    with vsock.guest() as guest:
        peer = connect(vsock, vsock.driver(guest))
        guest.stop()
        guest.start()
        assert peer.recv(1) == b""
        connect(vsock, FakeVsockDriver(guest, CID), 5001)


def test_a_pause_keeps_connections(vsock: VsockRig) -> None:
    """A stop that resumes at the old index loses nothing."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest, buffers=10)
        peer = connect(vsock, driver)
        rx, tx = guest.stop()
        assert (rx, tx) == (1, 1)
        peer.sendall(b"while paused")
        time.sleep(0.02)
        guest.start(base=1)
        assert driver.receive()[1] == b"while paused"


def test_the_end_of_the_machine_ends_every_socket(vsock: VsockRig) -> None:
    """End of stream closes the host's sockets, removes the listener and reports no fault."""
    with vsock.guest() as guest:
        peer = connect(vsock, vsock.driver(guest))
    assert vsock.closed.get(timeout=SECONDS) is None
    assert peer.recv(1) == b""
    assert not vsock.host_socket.exists()


def test_counters_tell_what_went_through(vsock: VsockRig) -> None:
    """Payload bytes each way, and connections."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        peer = connect(vsock, driver)
        driver.send(Op.RW, port=5000, payload=b"four")
        peer.sendall(b"seven b")
        driver.receive()
        counters = vsock.backend.counters
        assert (counters.connections, counters.open_now) == (1, 1)
        assert (counters.bytes_from_guest, counters.bytes_to_guest) == (4, 7)


def _hostile_descriptor(guest: FakeGuest, address: int, length: int, flags: int, following: int) -> None:
    queue = guest.queues[1]
    queue.write_descriptor(0, address, length, flags, following)
    queue.offer(0)
    queue.kick()


@pytest.mark.parametrize(
    "descriptor",
    [(0x100000, 44, 1, 0), (0x100000, 44, 1, 128), (0x100000, 44, 1, 65535), (0x100000, 16, 4, 0)],
    ids=["loop", "next out of range", "next far out of range", "indirect"],
)
def test_a_ring_that_cannot_be_right_ends_the_device(vsock: VsockRig, descriptor: tuple[int, int, int, int]) -> None:
    """One reason, no exception in the loop."""
    with vsock.guest() as guest:
        vsock.driver(guest)
        _hostile_descriptor(guest, *descriptor)
        assert "virtqueue" in str(vsock.closed.get(timeout=SECONDS))


@pytest.mark.parametrize("heads", [[128], [65535]])
def test_a_head_out_of_range_ends_the_device(vsock: VsockRig, heads: list[int]) -> None:
    """The available ring names a descriptor that is not there."""
    with vsock.guest() as guest:
        vsock.driver(guest)
        for head in heads:
            guest.queues[1].offer(head)
        guest.queues[1].kick()
        assert "virtqueue" in str(vsock.closed.get(timeout=SECONDS))


def test_an_index_that_jumps_ends_the_device(vsock: VsockRig) -> None:
    """More new entries than the ring has."""
    with vsock.guest() as guest:
        vsock.driver(guest)
        guest.queues[1].set_available_index(129)
        guest.queues[1].kick()
        assert "129 new entries" in str(vsock.closed.get(timeout=SECONDS))


@pytest.mark.parametrize(
    ("address", "length"),
    [(0xE0000, 44), (0xDFFF0, 44), (2**64 - 1, 44), (0x100000, 2**32 - 1), (2**63, 1)],
)
def test_a_buffer_outside_memory_is_returned_unread(vsock: VsockRig, address: int, length: int) -> None:
    """The chain comes back with length 0 and the device goes on (devices.md §4.1)."""
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        _hostile_descriptor(guest, address, length, 0, 0)
        assert guest.queues[1].wait_used()[2] == 0
        connect(vsock, driver)


def test_a_port_beyond_the_limit_of_connections_is_refused(vsock: VsockRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of connections is bounded; a refused client is hung up on."""
    monkeypatch.setattr(vsock.backend._muxer, "_limit", 1)
    with vsock.guest() as guest:
        driver = vsock.driver(guest)
        connect(vsock, driver)
        driver.send(Op.REQUEST, port=5000, own_port=1001)
        header, _ = driver.receive()
        assert (header.op, header.dst_port) == (Op.RST, 1001)
        client = vsock.client()
        client.sendall(b"CONNECT 1\n")
        assert client.recv(1) == b""


def test_the_listener_is_for_its_owner_alone(vsock: VsockRig) -> None:
    """Mode 0600: the socket is the only access control."""
    assert vsock.host_socket.stat().st_mode & 0o777 == 0o600


def test_another_address_is_no_guest() -> None:
    """Only the names that the device binds are read."""
    assert parse_peer_name("") is None
    assert parse_peer_name(b"\0other/1/2/3") is None
    assert parse_peer_name(b"\0alcove-vsock/16/5/0f") == (Cid(16), 5)
