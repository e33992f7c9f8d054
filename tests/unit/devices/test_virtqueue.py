"""The split ring and the memory behind it (devices.md §3.7, §4)."""

from __future__ import annotations

import platform
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.devices.vhost_user.memory import GuestMemory, Region
from alcove.devices.virtio import fence
from alcove.devices.virtio.fence import ORDERED, full_fence, host_fence
from alcove.devices.virtio.queue import RingLayout, SplitQueue
from alcove.devices.virtio.segments import clip, gather, scatter, total
from alcove.errors import MachineError, ProtocolError

SIZE = 8
USER = 1 << 40
DESCRIPTORS, AVAILABLE, USED, DATA = 0, 0x100, 0x200, 0x400


class Ring:
    """A ring of 8 in 4 KiB of memory, written by hand."""

    def __init__(self, base: int = 0) -> None:
        self.memory = memoryview(bytearray(4096))
        struct.pack_into("<H", self.memory, AVAILABLE + 2, base)
        struct.pack_into("<H", self.memory, USED + 2, base)
        self.guest = GuestMemory([Region(0, USER, self.memory)])
        self.queue = SplitQueue(RingLayout(SIZE, USER, USER + AVAILABLE, USER + USED), self.guest, base)
        self.index = base

    def descriptor(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write a descriptor."""
        struct.pack_into("<QIHH", self.memory, DESCRIPTORS + 16 * index, address, length, flags, following)

    def offer(self, head: int) -> None:
        """Make a head available."""
        struct.pack_into("<H", self.memory, AVAILABLE + 4 + 2 * (self.index % SIZE), head)
        self.index = (self.index + 1) & 0xFFFF
        struct.pack_into("<H", self.memory, AVAILABLE + 2, self.index)

    def used(self) -> tuple[int, list[tuple[int, int]]]:
        """The used index and all entries."""
        (index,) = struct.unpack_from("<H", self.memory, USED + 2)
        return index, list(struct.iter_unpack("<II", self.memory[USED + 4 : USED + 4 + 8 * SIZE]))  # type: ignore[arg-type]


def test_chains_come_in_the_guests_order_and_go_back_with_their_length() -> None:
    """Segments keep their order and direction; nothing is visible before it is published."""
    ring = Ring()
    ring.memory[DATA : DATA + 4] = b"data"
    ring.descriptor(3, DATA, 4, 1, 5)
    ring.descriptor(5, DATA + 16, 8, 2)
    ring.offer(3)
    chain = ring.queue.pop()
    assert chain is not None
    assert (chain.head, gather(chain.readable, 10), total(chain.writable)) == (3, b"data", 8)
    scatter(chain.writable, b"written!")
    ring.queue.push(chain.head, 8)
    assert ring.used()[0] == 0
    assert ring.queue.publish()
    assert ring.used()[0] == 1
    assert ring.used()[1][0] == (3, 8)
    assert bytes(ring.memory[DATA + 16 : DATA + 24]) == b"written!"
    assert not ring.queue.publish()
    assert ring.queue.pop() is None


def test_indexes_wrap_at_sixteen_bits() -> None:
    """A queue that resumes at 65534 goes on through 0."""
    ring = Ring(base=65534)
    ring.descriptor(0, DATA, 1)
    for expected in (65535, 0, 1):
        ring.offer(0)
        chain = ring.queue.pop()
        assert chain is not None
        ring.queue.push(0, 0)
        ring.queue.publish()
        assert ring.used()[0] == ring.queue.next_available == expected


def test_chains_can_be_given_back() -> None:
    """After a rewind the same chains come again."""
    ring = Ring()
    for index in range(3):
        ring.descriptor(index, DATA, 1)
        ring.offer(index)
    heads = [chain.head for chain in (ring.queue.pop(), ring.queue.pop(), ring.queue.pop()) if chain]
    ring.queue.rewind(2)
    again = [chain.head for chain in (ring.queue.pop(), ring.queue.pop()) if chain]
    assert heads[1:] == again == [1, 2]


@pytest.mark.parametrize(
    ("descriptors", "why"),
    [
        ([(4090, 7, 0, 0)], "beyond memory"),
        ([(2**64 - 1, 2, 0, 0)], "wraps around"),
        ([(DATA, 1, 3, 1), (DATA, 1, 0, 0)], "readable after writable"),
    ],
)
def test_wrong_buffers_go_back_unused_and_the_next_chain_comes(
    descriptors: list[tuple[int, int, int, int]], why: str
) -> None:
    """Only the chain is dropped."""
    ring = Ring()
    for index, fields in enumerate(descriptors):
        ring.descriptor(index, *fields)
    ring.descriptor(7, DATA, 1)
    ring.offer(0)
    ring.offer(7)
    chain = ring.queue.pop()
    assert chain is not None, why
    assert chain.head == 7
    ring.queue.publish()
    assert ring.used() == (1, [(0, 0)] * SIZE)


def test_empty_descriptors_are_skipped() -> None:
    """Length 0 is legal, wherever it points."""
    ring = Ring()
    ring.descriptor(0, 2**63, 0, 1, 1)
    ring.descriptor(1, DATA, 2)
    ring.offer(0)
    chain = ring.queue.pop()
    assert chain is not None
    assert total(chain.readable) == 2


@pytest.mark.parametrize(
    "fields", [(DATA, 1, 1, 0), (DATA, 1, 1, 8), (DATA, 1, 4, 0)], ids=["loop", "next out of range", "indirect"]
)
def test_a_broken_queue_stays_broken(fields: tuple[int, int, int, int]) -> None:
    """The same error, now and later."""
    ring = Ring()
    ring.descriptor(0, *fields)
    ring.offer(0)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="virtqueue"):
            ring.queue.pop()


@pytest.mark.parametrize(
    "layout",
    [
        (0, 0, 0x800, 0x1000),
        (3, 0, 0x800, 0x1000),
        (2048, 0, 0x10000, 0x20000),
        (2**32 - 1, 0, 0x10000, 0x20000),
        (8, 8, 0x800, 0x1000),
        (8, 0, 0x801, 0x1000),
        (8, 0, 0x800, 0x1002),
        (8, 0, 126, 0x1000),
        (8, 0x810, 0x800, 0x1000),
        (8, 0, 0x800, 0x810),
        (8, 0, 0x800, 124),
    ],
)
def test_layouts_are_checked(layout: tuple[int, int, int, int]) -> None:
    """A power of two up to 1024, aligned as virtio asks, in three parts that do not overlap."""
    RingLayout(8, 0, 128, 0x1000)
    with pytest.raises(ProtocolError):
        RingLayout(*layout)


def test_a_ring_outside_shared_memory_is_refused() -> None:
    """Ring addresses are the front-end's; guest addresses do not count."""
    memory = GuestMemory([Region(0, USER, memoryview(bytearray(4096)))])
    with pytest.raises(ProtocolError):
        SplitQueue(RingLayout(8, 0, 0x100, 0x200), memory, 0)


def test_wrong_chains_are_a_bounded_amount_of_work() -> None:
    """A guest that offers wrong chains as fast as they are dropped does not keep the device in one call."""
    ring = Ring()
    ring.descriptor(0, 4090, 7)
    walked: list[int] = []

    def fence() -> None:  # called when the index has been read: the guest is never idle
        walked.append(ring.queue.next_available)
        for _ in range(SIZE):
            ring.offer(0)

    ring.queue = SplitQueue(RingLayout(SIZE, USER, USER + AVAILABLE, USER + USED), ring.guest, 0, fence)
    for _ in range(SIZE):
        ring.offer(0)
    assert ring.queue.pop() is None
    assert len(walked) <= 2


def test_the_fence_stands_between_an_index_and_its_entries() -> None:
    """Entries are read after the available index, and the used index is written after the entries."""
    ring = Ring()
    seen: list[tuple[int, tuple[int, int]]] = []
    ring.queue = SplitQueue(
        RingLayout(SIZE, USER, USER + AVAILABLE, USER + USED),
        ring.guest,
        0,
        lambda: seen.append((ring.used()[0], ring.used()[1][0])),
    )
    ring.descriptor(3, DATA, 4, 2)
    ring.offer(3)
    chain = ring.queue.pop()
    assert chain is not None
    assert len(seen) == 1
    ring.queue.push(chain.head, 4)
    ring.queue.publish()
    assert seen[1:] == [(0, (3, 4))]
    assert ring.used()[0] == 1


def test_the_fence_is_the_processors_own() -> None:
    """None is needed on x86; where one is, it is C11's, which can be called."""
    assert (host_fence() is None) == (platform.machine() in ORDERED)
    try:
        full_fence()()
    except MachineError as error:
        pytest.skip(error.message)


def test_a_machine_that_needs_a_fence_and_has_none_serves_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear word instead of a damaged guest."""
    monkeypatch.setattr(fence, "_LIBRARY", "libatomic-of-nowhere.so.1")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    full_fence.cache_clear()
    with pytest.raises(MachineError, match=r"aarch64.*memory barriers"):
        host_fence()


@given(st.binary(min_size=0x400, max_size=0x400), st.integers(0, 65535))
def test_any_ring_memory_gives_chains_or_a_protocol_error(content: bytes, base: int) -> None:
    """Whatever the guest wrote: bounded work, no other exception, only segments inside memory."""
    ring = Ring(base)
    ring.memory[:0x400] = content
    try:
        for _ in range(SIZE + 1):
            chain = ring.queue.pop()
            if chain is None:
                break
            assert len(chain.readable) + len(chain.writable) <= SIZE
            ring.queue.push(chain.head, 0)
    except ProtocolError:
        pass


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_translation_never_leaves_a_region(address: int, length: int) -> None:
    """Either a view of exactly that many bytes or ProtocolError; never across the hole."""
    memory = GuestMemory(
        [
            Region(0, USER, memoryview(bytearray(0x1000))),
            Region(0x2000, USER + 0x2000, memoryview(bytearray(0x1000))),
        ]
    )
    inside = address + length <= 0x1000 or (address >= 0x2000 and address + length <= 0x3000)
    try:
        assert len(memory.guest(address, length)) == length
        assert inside
    except ProtocolError:
        assert not inside


@given(st.lists(st.binary(max_size=5)), st.integers(0, 20), st.integers(0, 20))
def test_segments_read_as_one_buffer(parts: list[bytes], start: int, length: int) -> None:
    """The cut of segments does not matter."""
    segments = [memoryview(bytearray(part)) for part in parts]
    whole = b"".join(parts)
    assert b"".join(clip(segments, start, length)) == whole[start : start + length]
    assert gather(segments, length) == whole[:length]
    scatter(segments, whole[::-1])
    assert b"".join(segments) == whole[::-1]
