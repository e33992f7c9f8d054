"""The guest's memory, as views of it that know their bounds (devices.md §3.7, §4.1).

Core: views in, views out; mapping a descriptor is the shell's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alcove.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Region:
    """One mapped row of the memory table; `view` has its `size` bytes and is writable."""

    guest_address: int
    user_address: int
    view: memoryview


class GuestMemory:
    """Translates addresses to views. A range that no single region holds is refused, so nothing reads past a region.

    Args:
        regions: The mapped memory table.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self._guest = [(r.guest_address, r.guest_address + len(r.view), r.view) for r in regions]
        self._guest.sort(key=lambda row: row[0] - row[1])  # the largest first: nearly every look-up ends there
        self._user = [(r.user_address, r.user_address + len(r.view), r.view) for r in regions]

    def guest(self, address: int, length: int) -> memoryview:
        """The bytes at a guest physical address.

        Raises:
            ProtocolError: No region holds all of them.
        """
        end = address + length
        for start, stop, view in self._guest:
            if start <= address and end <= stop:
                return view[address - start : end - start]
        raise ProtocolError(f"guest memory has no {length} bytes at {address:#x}")

    def user(self, address: int, length: int) -> memoryview:
        """The bytes at one of the front-end's own addresses; errors as in :meth:`guest`."""
        for start, stop, view in self._user:
            if start <= address and address + length <= stop:
                return view[address - start : address - start + length]
        raise ProtocolError(f"the front-end shares no {length} bytes at {address:#x}")
