"""One ring as the server has it: what the front-end has said about it, its queue, its way to interrupt the guest."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

from alcove.devices.vhost_user import events as ev
from alcove.devices.vhost_user.memory import GuestMemory
from alcove.devices.virtio.queue import Fence, RingLayout, SplitQueue
from alcove.errors import ProtocolError

EVENT: Final = struct.Struct("=Q")  # eventfd(2)
_ONE: Final = EVENT.pack(1)


@dataclass(slots=True)
class Vring:
    """`queue` exists only while the ring may be processed; `base` is where it goes on."""

    size: int = 0
    address: ev.VringAddress | None = None
    base: int = 0
    kick: int | None = None
    call: int | None = None
    queue: SplitQueue | None = None

    def start(self, memory: GuestMemory, fence: Fence | None) -> None:
        """Process it from now on, from `base`.

        Raises:
            ProtocolError: It has no address, or one outside the guest's memory.
        """
        if self.address is None:
            raise ProtocolError("vhost-user: a ring without an address is to start")
        address = self.address
        layout = RingLayout(self.size, address.descriptors, address.available, address.used)
        self.queue = SplitQueue(layout, memory, self.base, fence)

    def pause(self) -> None:
        """Process it no more; `base` is what the front-end is told."""
        if self.queue is not None:
            self.base = self.queue.next_available
            self.queue = None

    def replace_call(self, fd: int | None) -> None:
        """Interrupt through another descriptor, and at once: a spurious interrupt is harmless (§3.6 rule 3)."""
        old, self.call = self.call, fd
        close(old)
        if fd is not None:
            os.set_blocking(fd, False)
            self.interrupt()

    def interrupt(self) -> None:
        """Make the guest look at it."""
        # a full counter means that the guest has a signal to come; what cannot be written is this guest's own loss
        if self.call is not None:
            try:  # noqa: SIM105 - for every answer to the guest
                os.write(self.call, _ONE)
            except OSError:
                pass


def close(*fds: int | None) -> None:
    """Close those that there are."""
    for fd in fds:
        if fd is not None:
            os.close(fd)
