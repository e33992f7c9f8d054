"""vsock without sockets: header, credit, table, muxer, handshake (devices.md §5)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.devices.vsock import events as ev
from alcove.devices.vsock.connection import TRANSITIONS, Connection, Input, Key, State
from alcove.devices.vsock.credit import BUFFER, Credit
from alcove.devices.vsock.handshake import parse_command
from alcove.devices.vsock.muxer import MAX_BACKLOG, Muxer
from alcove.devices.vsock.packet import HEADER_SIZE, Header, Op
from alcove.errors import ProtocolError
from alcove.types import Cid, Port

CID = Cid(16)


def packet(
    op: int, *, port: int = 5000, own_port: int = 1000, length: int = 0, flags: int = 0, **changes: int
) -> Header:
    fields = {
        "src_cid": CID, "dst_cid": 3, "src_port": own_port, "dst_port": port, "length": length,
        "type": 1, "op": op, "flags": flags, "buf_alloc": BUFFER, "fwd_cnt": 0,
    }  # fmt: skip
    return Header(**(fields | changes))


def test_the_header_has_44_bytes_in_this_order() -> None:
    """The layout of struct virtio_vsock_hdr."""
    assert HEADER_SIZE == 44
    data = Header(1, 2, 3, 4, 5, 6, 7, 8, 9, 10).pack()
    assert data.hex(" ", 4) == (
        "01000000 00000000 02000000 00000000 03000000 04000000 05000000 06000700 08000000 09000000 0a000000"
    )


@given(st.binary(min_size=44, max_size=44))
def test_headers_survive_a_round_trip(data: bytes) -> None:
    """Any 44 bytes are a header, and the header is those bytes."""
    assert Header.parse(data).pack() == data


def test_every_open_state_can_be_left_by_reset_and_time_out() -> None:
    """Rule 2 of the table."""
    for state, moves in TRANSITIONS.items():
        if state is not State.CLOSED:
            assert moves[Input.TIMED_OUT] is moves[Input.GUEST_RESET] is State.CLOSED


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("happened", Input)
def test_a_connection_moves_along_the_table_and_no_other_way(state: State, happened: Input) -> None:
    """What the table does not list is a ProtocolError, and leaves the state."""
    connection = Connection(Key(3, 1, 2), state)
    following = TRANSITIONS[state].get(happened)
    if following is None:
        with pytest.raises(ProtocolError):
            connection.step(happened)
        assert connection.state is state
    else:
        connection.step(happened)
        assert connection.state is following


def test_credit_follows_the_guests_counters_modulo_32_bits() -> None:
    """Free space is buf_alloc − (sent − fwd_cnt), and a negative result is 0."""
    credit = Credit()
    assert credit.allowance() == 0
    credit.learn(1000, 0)
    credit.send(600)
    assert credit.allowance() == 400
    credit.learn(500, 0)
    assert credit.allowance() == 0
    credit.learn(500, 600)
    assert credit.allowance() == 500
    credit.learn(500, 601)  # the guest claims more than it got
    assert credit.allowance() == 0
    wrapping = Credit()
    wrapping.learn(10, 0)
    for _ in range(3):
        wrapping.send(2**31)
        wrapping.learn(10, wrapping._sent & 0xFFFFFFFF)
    assert wrapping.allowance() == 10


@given(st.integers(1, 1 << 20), st.lists(st.integers(1, 65536), max_size=60))
def test_a_guest_that_keeps_to_the_smaller_window_is_never_stuck(buf_alloc: int, sizes: list[int]) -> None:
    """Whenever the guest has no room left and the host has taken all, an update is due (libkrun #772)."""
    credit = Credit()
    credit.learn(buf_alloc, 0)
    window, sent, told = min(buf_alloc, BUFFER), 0, 0
    for size in sizes:
        part = min(size, window - (sent - told))
        assert credit.receive(part)
        credit.forward(part)
        sent += part
        if credit.update_due():
            _, told = credit.stamp()
        assert sent - told < window


def test_an_unanswered_dial_is_undone_by_a_second_request() -> None:
    """The old connection is gone, and a queued answer to it is not taken for the new one's."""
    muxer = Muxer(CID)
    (first,) = muxer.receive(packet(Op.REQUEST), 0)
    muxer.failed(first.connection)
    (second,) = muxer.receive(packet(Op.REQUEST), 0)
    muxer.connected(second.connection)
    header = muxer.next_control()
    assert header is not None
    assert header.op == Op.RESPONSE
    assert muxer.next_control() is None


def test_counters_are_filled_in_when_a_packet_leaves() -> None:
    """An update that waited says what is true when it leaves."""
    muxer = Muxer(CID)
    (dial,) = muxer.receive(packet(Op.REQUEST), 0)
    muxer.connected(dial.connection)
    muxer.next_control()
    list(muxer.receive(packet(Op.CREDIT_REQUEST), 0))
    list(muxer.receive(packet(Op.RW, length=100), 100))
    muxer.forwarded(dial.connection, 100)
    header = muxer.next_control()
    assert header is not None
    assert (header.op, header.fwd_cnt) == (Op.CREDIT_UPDATE, 100)


@pytest.mark.parametrize(
    "breach",
    [
        packet(Op.RW, length=BUFFER + 1),
        packet(Op.RESPONSE),
        packet(Op.RW, length=10),
    ],
    ids=["more than credit", "answer to nothing", "more than the buffer"],
)
def test_a_breach_resets_its_connection_alone(breach: Header) -> None:
    """RST, Gone, and the muxer goes on."""
    muxer = Muxer(CID)
    (dial,) = muxer.receive(packet(Op.REQUEST), 0)
    muxer.connected(dial.connection)
    muxer.next_control()
    assert list(muxer.receive(breach, 9 if breach.length == 10 else 1 << 30)) == [ev.Gone(dial.connection)]
    header = muxer.next_control()
    assert header is not None
    assert header.op == Op.RST
    assert len(muxer) == 0


def test_data_after_the_end_of_data_is_a_breach() -> None:
    """A guest that said SHUTDOWN SEND sends no more."""
    muxer = Muxer(CID)
    (dial,) = muxer.receive(packet(Op.REQUEST), 0)
    muxer.connected(dial.connection)
    assert ev.GuestEnded(dial.connection) in list(muxer.receive(packet(Op.SHUTDOWN, flags=2), 0))
    assert list(muxer.receive(packet(Op.RW, length=1), 1)) == [ev.Gone(dial.connection)]


def test_shutdown_flags_accumulate() -> None:
    """RCV and then SEND close like both at once."""
    muxer = Muxer(CID)
    (dial,) = muxer.receive(packet(Op.REQUEST), 0)
    muxer.connected(dial.connection)
    assert ev.GuestDeaf(dial.connection) in list(muxer.receive(packet(Op.SHUTDOWN, flags=1), 0))
    assert list(muxer.receive(packet(Op.SHUTDOWN, flags=2), 0)) == [ev.Closing(dial.connection)]
    assert dial.connection.state is State.DRAINING


@given(
    st.lists(
        st.builds(
            packet,
            st.integers(0, 9),
            port=st.integers(5000, 5001),
            own_port=st.integers(1, 2),
            length=st.integers(0, 70000),
            flags=st.integers(0, 7),
            buf_alloc=st.integers(0, 2**32 - 1),
            fwd_cnt=st.integers(0, 2**32 - 1),
            dst_cid=st.integers(2, 4),
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_any_packets_give_events_and_nothing_else(packets: list[Header], accept: bool) -> None:
    """A hostile guest makes no exception and no more connections than it asked for."""
    muxer = Muxer(CID)
    for header in packets:
        for event in muxer.receive(header, 65536):
            match event:
                case ev.Dial(connection) if accept:
                    muxer.connected(connection)
                case ev.Data(connection, length):
                    muxer.forwarded(connection, length)
                case ev.Closing(connection):
                    muxer.flushed(connection)
    assert len(muxer) <= 12
    while muxer.next_control() is not None:
        pass


def test_the_backlog_is_reported() -> None:
    """A caller stops when this many control packets wait."""
    muxer = Muxer(CID)
    for own_port in range(MAX_BACKLOG):
        assert not muxer.backlog_full
        list(muxer.receive(packet(Op.RW, own_port=own_port), 0))
    assert muxer.backlog_full


def test_local_ports_go_round() -> None:
    """Each offer has a port of its own in [2³⁰, 2³¹)."""
    muxer = Muxer(CID)
    ports = [muxer.open(Port(1)).key.host_port for _ in range(3)]
    assert ports == [2**30, 2**30 + 1, 2**30 + 2]


@pytest.mark.parametrize(
    ("line", "port"),
    [(b"CONNECT 5000\n", 5000), (b"connect 1\n", 1), (b"Connect\t4294967295 \r\n", 4294967295)],
)
def test_connect_commands_are_taken_in_any_case(line: bytes, port: int) -> None:
    """As Firecracker takes them."""
    assert parse_command(line) == port


@given(st.binary(max_size=32))
def test_any_command_is_a_port_or_a_protocol_error(line: bytes) -> None:
    """Nothing else comes out."""
    with contextlib.suppress(ProtocolError):
        assert 0 <= parse_command(line) < 2**32
