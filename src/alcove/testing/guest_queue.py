"""A split virtqueue, driven as a guest's driver drives it (virtio 1.2 §2.7; devices.md §4)."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Sequence
from typing import Final

from alcove.devices.virtio.queue import DESC_NEXT, DESC_WRITE

SLOT: Final = 0x11000  # guest memory for each descriptor: a vsock packet of 64 KiB and its header fit
_DESCRIPTOR: Final = struct.Struct("<QIHH")


class GuestQueue:
    """One queue: its rings and buffers in guest memory, and the descriptors that signal.

    Args:
        memory: A view of all guest memory, from guest physical address 0.
        start: Where the rings and, after them, the buffers are.
        size: Number of entries.
    """

    def __init__(self, memory: memoryview, start: int, size: int) -> None:
        self._memory = memory
        self.size = size
        self.descriptors = start
        self.available = start + 16 * size
        self.used = (self.available + 6 + 2 * size + 3) & ~3
        self._buffers = (self.used + 6 + 8 * size + 4095) & ~4095
        self.end = self._buffers + size * SLOT
        # the device reads and writes these at any moment: one machine instruction each, which `struct` does not promise
        self._available_index = memory[self.available + 2 : self.available + 4].cast("H")
        self._used_index = memory[self.used + 2 : self.used + 4].cast("H")
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.reset()

    def reset(self) -> None:
        """Start with empty rings, as a driver that has just been loaded."""
        self._memory[self.descriptors : self._buffers] = bytes(self._buffers - self.descriptors)
        self._free = list(range(self.size))
        self._chains: dict[int, list[tuple[int, int, bool]]] = {}
        self._next_available = 0
        self._next_used = 0

    def add(self, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> int:
        """Offer one chain: these bytes to read, then room for so many bytes to write.

        Returns:
            The index of its head.
        """
        buffers: list[bytes | int] = [*readable, *writable]
        parts = [(self._free.pop(0), data) for data in buffers]
        for position, (slot, data) in enumerate(parts):
            length = data if isinstance(data, int) else len(data)
            flags = DESC_WRITE if isinstance(data, int) else 0
            following = parts[position + 1][0] if position + 1 < len(parts) else 0
            if not isinstance(data, int):
                self._memory[self._address(slot) : self._address(slot) + length] = data
            flags |= DESC_NEXT if position + 1 < len(parts) else 0
            self.write_descriptor(slot, self._address(slot), length, flags, following)
        head = parts[0][0]
        self._chains[head] = [(s, d if isinstance(d, int) else len(d), isinstance(d, int)) for s, d in parts]
        self.offer(head)
        return head

    def write_descriptor(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        """Write any descriptor, right or wrong."""
        _DESCRIPTOR.pack_into(self._memory, self.descriptors + 16 * index, address, length, flags, following)

    def offer(self, head: int) -> None:
        """Put any head on the available ring, right or wrong, and move its index."""
        struct.pack_into("<H", self._memory, self.available + 4 + 2 * (self._next_available % self.size), head)
        self.set_available_index(self._next_available + 1)

    def set_available_index(self, index: int) -> None:
        """Write any available index."""
        self._available_index[0] = self._next_available = index & 0xFFFF

    @property
    def used_index(self) -> int:
        """How many chains were returned since the start, modulo 65536."""
        return self._used_index[0]

    def kick(self) -> None:
        """Tell the device."""
        os.eventfd_write(self.kick_fd, 1)

    def get_used(self) -> tuple[int, bytes, int] | None:
        """The next returned chain: head, what was written, the length as reported. None if there is none."""
        if self.used_index == self._next_used:
            return None
        at = self.used + 4 + 8 * (self._next_used % self.size)
        head, length = struct.unpack_from("<II", self._memory, at)
        self._next_used = (self._next_used + 1) & 0xFFFF
        return head, self._collect(head, length), length

    def wait_interrupt(self, timeout: float = 30.0) -> bool:
        """Wait for the newest call descriptor, and only for that one.

        Returns:
            Whether it was signalled.
        """
        if not select.select([self.call_fd], [], [], timeout)[0]:
            return False
        os.eventfd_read(self.call_fd)
        return True

    def wait_used(self, timeout: float = 30.0) -> tuple[int, bytes, int]:
        """The next returned chain, after as many interrupts as it takes.

        Raises:
            TimeoutError: There was none in time.
        """
        while True:
            entry = self.get_used()
            if entry is not None:
                return entry
            if not self.wait_interrupt(timeout):
                raise TimeoutError("the device returned nothing")

    def new_call(self) -> int:
        """Replace the call descriptor; signals to the old one are lost."""
        os.close(self.call_fd)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self.call_fd

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self.kick_fd)
        os.close(self.call_fd)

    def _address(self, slot: int) -> int:
        return self._buffers + slot * SLOT

    def _collect(self, head: int, length: int) -> bytes:
        data = b""
        for slot, room, writable in self._chains.pop(head, []):
            self._free.append(slot)
            if writable:
                data += bytes(self._memory[self._address(slot) : self._address(slot) + min(room, length - len(data))])
        return data
