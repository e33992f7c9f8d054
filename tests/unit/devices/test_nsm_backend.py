"""The NSM over a real socket, with guest memory and rings (nsm.md §1.1, §1.2; devices.md §3)."""

from __future__ import annotations

import contextlib
import os

import pytest

from alcove.devices.nsm import messages as nsm
from alcove.devices.vhost_user import messages as wire
from alcove.devices.vhost_user.messages import Request
from alcove.testing.fake_drivers import FakeNsmDriver

from .conftest import SECONDS, NsmRig

GET_RANDOM = bytes.fromhex("6947657452616e646f6d")


def test_a_guest_talks_to_its_module(nsm_: NsmRig) -> None:
    """Requests at probe and later are answered through both chains, in order, with exact lengths."""
    with nsm_.guest() as guest:
        driver = nsm_.driver(guest)
        assert len(driver.request(GET_RANDOM)) == 278
        for index in range(5):
            answer = nsm.decode_response(driver.request(nsm.encode_request(nsm.DescribePCR(index))))
            assert answer == nsm.PcrDescribed(lock=True, data=(b"\x11" if index == 0 else b"\0") * 48)
        document = driver.request(nsm.encode_request(nsm.Attestation(nonce=b"n")))
        assert nsm.decode_response(document) == nsm.Attested(b"document")
        assert nsm_.backend.requests == 7


def test_the_first_request_before_enable_is_served_at_enable(nsm_: NsmRig) -> None:
    """A kick that came before ENABLE is not lost, and its interrupt goes to the newest descriptor (devices.md §3.6)."""
    with nsm_.guest() as guest:
        guest.realize()
        guest.start()
        guest.enable(0, enabled=False)
        queue = guest.queues[0]
        queue.add(readable=[GET_RANDOM])
        queue.add(writable=[0x3000])
        queue.kick()
        while queue.wait_interrupt(0.05):
            pass
        assert queue.get_used() is None
        guest.enable(0, enabled=True)
        queue.wait_used()
        assert queue.wait_used()[2] == 278


def test_every_new_call_descriptor_is_signalled(nsm_: NsmRig) -> None:
    """A replaced descriptor gets a spurious interrupt, so that none is missed."""
    with nsm_.guest() as guest:
        nsm_.driver(guest)
        assert guest.queues[0].wait_interrupt()


def test_one_chain_waits_for_the_second(nsm_: NsmRig) -> None:
    """A request without room for its answer is kept until there is room."""
    with nsm_.guest() as guest:
        nsm_.driver(guest)
        queue = guest.queues[0]
        queue.add(readable=[GET_RANDOM])
        queue.kick()
        while queue.wait_interrupt(0.05):
            pass
        assert queue.get_used() is None
        queue.add(writable=[0x3000])
        queue.kick()
        assert queue.wait_used()[2] == 0
        assert queue.wait_used()[2] == 278


def test_a_request_goes_back_with_the_wrong_chain_behind_it(nsm_: NsmRig) -> None:
    """A response buffer outside memory: both chains return unused, each once, and the next exchange is served."""
    with nsm_.guest(queues=(8,)) as guest:
        driver = nsm_.driver(guest)
        queue = guest.queues[0]
        request = queue.add(readable=[GET_RANDOM])
        queue.write_descriptor(7, 1 << 60, 0x3000, 2, 0)
        queue.offer(7)
        queue.kick()
        assert [queue.wait_used()[::2], queue.wait_used()[::2]] == [(7, 0), (request, 0)]
        assert nsm_.backend.requests == 1
        assert len(driver.request(GET_RANDOM)) == 278


def test_one_chain_with_both_directions_is_served(nsm_: NsmRig) -> None:
    """Segments to read and to write in one chain are a request and its answer."""
    with nsm_.guest(queues=(8,)) as guest:
        nsm_.driver(guest)
        queue = guest.queues[0]
        queue.add(readable=[GET_RANDOM[:3], GET_RANDOM[3:]], writable=[100, 0x2000])
        queue.kick()
        _, answer, length = queue.wait_used()
        assert length == 278
        assert len(nsm.decode_response(answer).random) == 256  # type: ignore[union-attr]


@pytest.mark.parametrize(("room", "answer"), [(100, nsm.ErrorCode.BUFFER_TOO_SMALL), (8, None)])
def test_an_answer_without_room_becomes_an_error_or_nothing(
    nsm_: NsmRig, room: int, answer: nsm.ErrorCode | None
) -> None:
    """BufferTooSmall if that fits, else length 0."""
    with nsm_.guest() as guest:
        data = nsm_.driver(guest).request(GET_RANDOM, room=room)
        assert data == (nsm.encode_response(nsm.Failed(answer)) if answer else b"")


def test_odd_requests_have_their_errors(nsm_: NsmRig) -> None:
    """An empty request is InvalidOperation, one over the limit InputTooLarge; the device goes on."""
    with nsm_.guest() as guest:
        driver = nsm_.driver(guest)
        assert nsm.decode_response(driver.request(bytes(0x1001))) == nsm.Failed(nsm.ErrorCode.INPUT_TOO_LARGE)
        assert len(driver.request(GET_RANDOM)) == 278


def test_the_guest_may_restart_its_driver(nsm_: NsmRig) -> None:
    """After a stop the ring resumes where the front-end says, or anew."""
    with nsm_.guest() as guest:
        driver = nsm_.driver(guest)
        driver.request(GET_RANDOM)
        assert guest.stop() == [2]
        guest.start(base=2)
        assert len(driver.request(GET_RANDOM)) == 278
        assert guest.stop() == [4]
        guest.start()
        assert len(FakeNsmDriver(guest).request(GET_RANDOM)) == 278


def test_the_end_of_the_machine_is_reported_without_a_fault(nsm_: NsmRig) -> None:
    """End of stream gives on_closed(None), once."""
    with nsm_.guest() as guest:
        nsm_.driver(guest)
    assert nsm_.closed.get(timeout=SECONDS) is None
    assert nsm_.closed.empty()


def test_unshared_memory_is_named(nsm_: NsmRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """SET_FEATURES without a memory table ends the device with a reason that names share=on."""
    monkeypatch.setattr("alcove.devices.vhost_user.server.MEMORY_TABLE_SECONDS", 0.05)
    with nsm_.guest() as guest:
        guest.realize()
        guest.start(share_memory=False)
        assert "share=on" in str(nsm_.closed.get(timeout=SECONDS))


@pytest.mark.parametrize(
    "message",
    [
        wire.pack_message(Request.SET_FEATURES, b"\xff" * 8),
        wire.pack_message(Request.SET_FEATURES, b"\0"),
        wire.pack_message(Request.SET_VRING_NUM, wire.VRING_STATE.pack(7, 2)),
        wire.pack_message(Request.SET_VRING_KICK, wire.U64.pack(0)),
        wire.pack_message(Request.SET_MEM_TABLE, bytes(8)),
        wire.pack_message(Request.GET_CONFIG, wire.CONFIG.pack(0, 8, 0)),
        wire.HEADER.pack(1, 1, 1 << 30),
        wire.HEADER.pack(1, 2, 0),
        wire.pack_message(Request.SET_VRING_ENABLE, wire.VRING_STATE.pack(0, 1)),
    ],
)
def test_a_broken_front_end_ends_the_device(nsm_: NsmRig, message: bytes) -> None:
    """A breach of vhost-user closes the connection with one reason, and nothing reaches the loop."""
    with nsm_.guest() as guest:
        guest.realize()
        guest.front_end.send_raw(message)
        assert nsm_.closed.get(timeout=SECONDS)
        assert guest.front_end.hung_up()


def test_memory_that_could_shrink_is_refused(nsm_: NsmRig) -> None:
    """A front-end that cut its file short would end the supervisor with SIGBUS: only sealed files are mapped."""
    with nsm_.guest() as guest:
        guest.realize()
        whole, guest.memory_fd = guest.memory_fd, os.memfd_create("loose", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.close(whole)
        os.ftruncate(guest.memory_fd, len(guest.memory))
        with pytest.raises(ConnectionError):
            guest.start()
        assert "could shrink" in str(nsm_.closed.get(timeout=SECONDS))


def test_a_running_ring_is_not_changed(nsm_: NsmRig) -> None:
    """Size, place and base are set before ENABLE; later they end the device."""
    with nsm_.guest() as guest:
        nsm_.driver(guest)
        guest.front_end.send_raw(wire.pack_message(Request.SET_VRING_NUM, wire.VRING_STATE.pack(0, 1024)))
        assert nsm_.closed.get(timeout=SECONDS) == "vhost-user: ring 0 is changed while it runs"


def test_a_front_end_that_does_not_read_is_hung_up_on(nsm_: NsmRig) -> None:
    """Replies that pile up end the device; a front-end that never stops asking does not keep the loop."""
    with nsm_.guest() as guest, contextlib.suppress(ConnectionError):
        while True:
            guest.front_end.send_raw(wire.pack_message(Request.GET_FEATURES) * 100)
    assert nsm_.closed.get(timeout=SECONDS) == "vhost-user: the front-end does not read its replies"


def test_a_memory_table_larger_than_its_file_is_refused(nsm_: NsmRig) -> None:
    """Mapping beyond the file would fault on access."""
    with nsm_.guest() as guest:
        guest.realize()
        guest.regions = (wire.RegionSpec(0, 1 << 30, 1 << 40, 0),)
        with pytest.raises(ConnectionError):
            guest.start()
        assert "smaller file" in str(nsm_.closed.get(timeout=SECONDS))


def test_unknown_requests_are_refused_or_skipped(nsm_: NsmRig) -> None:
    """With need_reply the answer is not zero; without, the next message is read."""
    with nsm_.guest() as guest:
        guest.realize()
        guest.front_end.send_raw(wire.pack_message(99, b"payload"))
        guest.front_end.ask(Request.GET_FEATURES)
        with pytest.raises(ConnectionError, match="refused with 1"):
            guest.front_end.tell(99)  # type: ignore[arg-type]
