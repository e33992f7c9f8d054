"""The vhost-user core: bytes and descriptors in, events out (devices.md §3)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.devices.vhost_user import events as ev
from alcove.devices.vhost_user import messages as wire
from alcove.devices.vhost_user.messages import Feature, ProtocolFeature, RegionSpec, Request
from alcove.devices.vhost_user.session import Session
from alcove.errors import ProtocolError

FEATURES = Feature.VERSION_1 | Feature.VHOST_USER_PROTOCOL
REGIONS = (RegionSpec(0, 0xE0000, 0x7F00_0000_0000, 0), RegionSpec(0x100000, 0xFF00000, 0x7F00_0010_0000, 0x100000))


def session() -> Session:
    return Session(
        features=FEATURES,
        protocol_features=ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG,
        queues=3,
        config=(16).to_bytes(8, "little"),
    )


def drive(core: Session, chunks: Iterable[bytes]) -> tuple[list[ev.Event], bytes]:
    """Events and replies for a stream of chunks; GET_VRING_BASE is answered with 7."""
    events: list[ev.Event] = []
    sent = b""
    for chunk in chunks:
        core.receive_data(chunk)
        for event in core.events():
            events.append(event)
            if isinstance(event, ev.VringStopped):
                core.answer_vring_base(7)
        sent += core.data_to_send()
    return events, sent


def message(request: int, payload: bytes = b"", *, need_reply: bool = False) -> bytes:
    return wire.pack_message(request, payload, flags=wire.NEED_REPLY if need_reply else 0)


def test_sizes_are_those_of_the_protocol() -> None:
    """Header 12 bytes, ring address 40, a table of two regions 72 (devices.md §3.1, §3.4)."""
    assert (wire.HEADER.size, wire.VRING_ADDRESS.size, len(wire.pack_regions(REGIONS))) == (12, 40, 72)


def test_questions_are_answered() -> None:
    """Replies carry flags 0x5 and the value; GET_CONFIG echoes its header before the CID."""
    _, sent = drive(
        session(),
        [
            message(Request.GET_FEATURES),
            message(Request.GET_PROTOCOL_FEATURES),
            message(Request.GET_QUEUE_NUM),
            message(Request.GET_CONFIG, wire.CONFIG.pack(0, 8, 0) + bytes(8)),
        ],
    )
    assert sent.hex(" ", -4) == (
        "01000000 05000000 08000000 00000040 01000000 "
        "0f000000 05000000 08000000 09020000 00000000 "
        "11000000 05000000 08000000 03000000 00000000 "
        "18000000 05000000 14000000 00000000 08000000 00000000 10000000 00000000"
    )


def test_an_acknowledgement_follows_what_the_event_made_happen() -> None:
    """The caller acts on a memory table before its acknowledgement is queued; without REPLY_ACK there is none."""
    core = session()
    drive(core, [message(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(ProtocolFeature.REPLY_ACK))])
    core.receive_data(message(Request.SET_MEM_TABLE, wire.pack_regions(REGIONS), need_reply=True), [10, 11])
    events = core.events()
    assert next(events) == ev.MemoryTable(REGIONS, (10, 11))
    assert core.data_to_send() == b""
    assert list(events) == []
    assert core.data_to_send().hex() == "0500000005000000080000000000000000000000"
    assert drive(session(), [message(Request.SET_OWNER, need_reply=True)]) == ([], b"")


def test_a_stopped_ring_reports_its_index() -> None:
    """GET_VRING_BASE is answered with what the caller says."""
    events, sent = drive(session(), [message(Request.GET_VRING_BASE, wire.VRING_STATE.pack(1, 0))])
    assert events == [ev.VringStopped(1)]
    assert sent.hex() == "0b00000005000000080000000100000007000000"


def test_descriptors_go_to_their_message_and_the_rest_is_given_back() -> None:
    """Kick and call descriptors come in events; bit 8 means none; what nobody wants is to be closed."""
    core = session()
    drive(core, [message(Request.SET_FEATURES, wire.U64.pack(FEATURES))])
    core.receive_data(message(Request.SET_VRING_KICK, wire.U64.pack(1)), [5, 6])
    core.receive_data(message(Request.SET_VRING_CALL, wire.U64.pack(0x101)))
    assert list(core.events()) == [ev.VringKick(1, 5), ev.UnusedDescriptors((6,)), ev.VringCall(1, None)]
    core.receive_data(message(Request.SET_VRING_ERR, wire.U64.pack(0)), [7])
    assert list(core.events()) == [ev.UnusedDescriptors((7,))]


def test_without_bit_30_rings_start_enabled() -> None:
    """A legacy front-end never sends ENABLE (devices.md §3.6 rule 1)."""
    core = session()
    core.receive_data(message(Request.SET_VRING_KICK, wire.U64.pack(0)), [5])
    assert list(core.events()) == [ev.VringKick(0, 5), ev.VringEnabled(0, enabled=True)]


def test_it_wants_no_more_than_the_current_message() -> None:
    """12 bytes for a header, then the payload: so descriptors cannot move to a neighbour."""
    core = session()
    assert core.wanted() == 12
    core.receive_data(message(Request.SET_FEATURES, bytes(8))[:12])
    assert list(core.events()) == []
    assert core.wanted() == 8


STREAM = b"".join(
    [
        message(Request.GET_FEATURES),
        message(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(9)),
        message(Request.SET_OWNER),
        message(Request.SET_FEATURES, wire.U64.pack(FEATURES)),
        message(Request.SET_VRING_NUM, wire.VRING_STATE.pack(0, 128), need_reply=True),
        message(Request.SET_VRING_BASE, wire.VRING_STATE.pack(0, 3)),
        message(Request.SET_VRING_ADDR, wire.VRING_ADDRESS.pack(0, 0, 0x1000, 0x2000, 0x3000, 0)),
        message(Request.SET_VRING_ENABLE, wire.VRING_STATE.pack(0, 1), need_reply=True),
        message(99, b"unknown", need_reply=True),
        message(Request.GET_VRING_BASE, wire.VRING_STATE.pack(0, 0)),
    ]
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_chunks_do_not_matter(cuts: list[int]) -> None:
    """However a stream is cut, events and replies are the same."""
    edges = [0, *sorted(cuts), len(STREAM)]
    assert drive(session(), [STREAM[a:b] for a, b in pairwise(edges)]) == drive(session(), [STREAM])


def test_the_ring_address_message_has_used_before_available() -> None:
    """The order of the wire is descriptors, used, available (devices.md §3.2)."""
    events, _ = drive(session(), [STREAM])
    assert ev.VringAddress(0, descriptors=0x1000, available=0x3000, used=0x2000) in events


@given(st.integers(0, 50), st.binary(max_size=100), st.lists(st.integers(3, 9), max_size=9))
def test_any_message_is_understood_or_a_protocol_error(request_: int, payload: bytes, fds: list[int]) -> None:
    """Nothing but ProtocolError comes out of the core."""
    core = session()
    try:
        core.receive_data(message(request_, payload), fds)
        for event in core.events():
            if isinstance(event, ev.VringStopped):
                core.answer_vring_base(0)
    except ProtocolError:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_a_protocol_error(data: bytes) -> None:
    """The same for bytes that are no messages at all."""
    core = session()
    core.receive_data(data)
    try:
        for event in core.events():
            if isinstance(event, ev.VringStopped):
                core.answer_vring_base(0)
    except ProtocolError:
        assert data


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        wire.pack_regions(REGIONS)[:-1],
        wire._REGION_COUNT.pack(9, 0) + bytes(9 * 32),
        wire._REGION_COUNT.pack(1, 0) + wire._REGION.pack(0, 0, 0, 0),
        wire._REGION_COUNT.pack(1, 0) + wire._REGION.pack(2**64 - 1, 2, 0, 0),
        wire.pack_regions((RegionSpec(0, 0x2000, 0, 0), RegionSpec(0x1FFF, 0x1000, 1 << 40, 0))),
        wire.pack_regions((RegionSpec(0, 0x2000, 0, 0), RegionSpec(1 << 40, 0x1000, 0x1000, 0))),
    ],
)
def test_memory_tables_are_checked(payload: bytes) -> None:
    """Count, size, empty regions, regions that wrap around, and those that overlap for the guest or the front-end."""
    with pytest.raises(ProtocolError):
        wire.parse_regions(payload)
