"""A split virtqueue, read by the device (virtio 1.2 §2.7; devices.md §4).

Core: memory views in, chains of views out.

    descriptors   n × {u64 address, u32 length, u16 flags, u16 next}
    available     u16 flags, u16 idx, n × u16 head
    used          u16 flags, u16 idx, n × {u32 head, u32 length}

The guest writes this memory while we read it. Rules:

1. Every field is read once, checked, and used from the local variable.
2. A ring that cannot be right (head or next out of range, loop, index jump, INDIRECT, misaligned, parts that overlap)
   breaks the queue: ProtocolError, now and on every later call. A driver starts again with a new queue.
3. A chain whose buffers are wrong (address outside memory, readable after writable) is returned with length 0 and the
   next one is taken.
4. Nothing is written but the used ring and what callers put into writable segments.
5. `idx` fields are loaded and stored with one machine instruction each (native "H" views), never byte by byte: the
   guest polls them. `fence` stands between an index and what it speaks of (devices.md §4); None where the processor
   keeps that order by itself.
6. One call does a bounded amount of work: after a ring's worth of wrong chains `pop` returns None.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from alcove.devices.vhost_user.memory import GuestMemory
from alcove.errors import ProtocolError

MAX_ENTRIES: Final = 1024  # devices.md §4: "accept 1 … 1024 and refuse the rest"
DESC_NEXT: Final = 1
DESC_WRITE: Final = 2
DESC_INDIRECT: Final = 4

Fence = Callable[[], object]

_DESCRIPTOR: Final = struct.Struct("<QIHH")  # address, length, flags, next
_USED_ENTRY: Final = struct.Struct("<II")  # head, length
_RING_HEADER: Final = 4  # flags, idx


@dataclass(frozen=True, slots=True)
class Chain:
    """One buffer that the guest offers: segments to read, then segments to write."""

    head: int
    readable: tuple[memoryview, ...]
    writable: tuple[memoryview, ...]


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Where a ring is, in user addresses of the front-end."""

    size: int
    descriptors: int
    available: int
    used: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_ENTRIES or self.size & (self.size - 1):
            raise ProtocolError(f"virtqueue: {self.size} entries")
        # virtio 1.2 §2.7: alignment 16, 2 and 4; legacy rings have more
        if self.descriptors % 16 or self.available % 2 or self.used % 4:
            raise ProtocolError("virtqueue: a ring is not aligned")
        sizes = (
            _DESCRIPTOR.size * self.size,
            _RING_HEADER + 2 * self.size,
            _RING_HEADER + _USED_ENTRY.size * self.size,
        )
        parts = sorted(zip((self.descriptors, self.available, self.used), sizes, strict=True))
        if any(start + length > after for (start, length), (after, _) in pairwise(parts)):
            raise ProtocolError("virtqueue: the parts of a ring overlap")


class SplitQueue:
    """One queue between ENABLE and stop.

    Args:
        layout: Where the ring is.
        memory: The guest's memory.
        base: The index of the first available entry to read.
        fence: Keeps memory accesses before it from those after it; None on processors that need none.

    Raises:
        ProtocolError: The ring is not in shared memory.
    """

    def __init__(self, layout: RingLayout, memory: GuestMemory, base: int, fence: Fence | None = None) -> None:
        size = layout.size
        self._size = size
        self._memory = memory
        self._fence = fence
        self._descriptors = memory.user(layout.descriptors, _DESCRIPTOR.size * size)
        self._available = memory.user(layout.available, _RING_HEADER + 2 * size).cast("H")
        self._used = memory.user(layout.used, _RING_HEADER + _USED_ENTRY.size * size)
        self._used_index = self._used[:_RING_HEADER].cast("H")
        self._next_available = base
        self._seen = base  # the guest's idx when we last looked
        self._next_used = self._published = self._used_index[1]
        self._fault: str | None = None

    @property
    def next_available(self) -> int:
        """The index that would be read next: the answer to GET_VRING_BASE."""
        return self._next_available

    def pop(self) -> Chain | None:
        """Take the next chain, or None when the guest has offered no more.

        Raises:
            ProtocolError: The queue is broken.
        """
        for _ in range(self._size):
            if not self._pending():
                break
            head = self._available[2 + self._next_available % self._size]
            self._next_available = (self._next_available + 1) & 0xFFFF
            chain = self._walk(head)
            if chain is not None:
                return chain
            self.push(head, 0)
        return None

    def rewind(self, count: int) -> None:
        """Give back the last `count` chains taken: they will be taken again."""
        self._next_available = (self._next_available - count) & 0xFFFF

    def push(self, head: int, written: int) -> None:
        """Return a chain with the number of bytes written to it; the guest sees it after :meth:`publish`."""
        _USED_ENTRY.pack_into(self._used, _RING_HEADER + self._next_used % self._size * _USED_ENTRY.size, head, written)
        self._next_used = (self._next_used + 1) & 0xFFFF

    def publish(self) -> bool:
        """Show the guest what was pushed.

        Returns:
            Whether there was anything new, so that the guest wants a signal.
        """
        if self._published == self._next_used:
            return False
        if self._fence is not None:  # the entries, and only then the index
            self._fence()
        self._used_index[1] = self._published = self._next_used
        return True

    def _pending(self) -> int:
        if self._fault is not None:
            raise ProtocolError(self._fault)
        if self._seen == self._next_available:
            self._seen = self._available[1]
            if self._fence is not None:  # the index, and only then the entries
                self._fence()
        count = (self._seen - self._next_available) & 0xFFFF
        if count > self._size:
            raise self._broken(f"{count} new entries in a ring of {self._size}")
        return count

    def _walk(self, head: int) -> Chain | None:
        """The chain at `head`; None when its buffers are wrong (rule 3)."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        wrong = False
        index = head
        for _ in range(self._size):
            if index >= self._size:
                raise self._broken(f"descriptor {index} of {self._size}")
            address, length, flags, following = _DESCRIPTOR.unpack_from(self._descriptors, index * _DESCRIPTOR.size)
            if flags & DESC_INDIRECT:
                raise self._broken("an indirect descriptor, which was not offered")
            if length and not wrong:
                segments = writable if flags & DESC_WRITE else readable
                wrong = (segments is readable and bool(writable)) or not self._add(segments, address, length)
            if not flags & DESC_NEXT:
                return None if wrong else Chain(head, tuple(readable), tuple(writable))
            index = following
        raise self._broken(f"a chain of more than {self._size} descriptors")

    def _add(self, segments: list[memoryview], address: int, length: int) -> bool:
        try:
            segments.append(self._memory.guest(address, length))
        except ProtocolError:
            return False
        return True

    def _broken(self, reason: str) -> ProtocolError:
        self._fault = f"virtqueue: {reason}"
        return ProtocolError(self._fault)
