"""The queue on which packets go to the guest (devices.md §5.2).

Core: guest buffers in, packets out.

The guest offers buffers of its own choice, about 3.7 KiB each in new kernels. Data is cut to fit them, control packets
go first, and nothing is read from the host before there is a buffer to read it into.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from alcove.devices.virtio.queue import Chain, SplitQueue
from alcove.devices.virtio.segments import clip, scatter, total
from alcove.devices.vsock.connection import Connection
from alcove.devices.vsock.muxer import Muxer
from alcove.devices.vsock.packet import HEADER_SIZE, MAX_PACKET

MAX_BUFFERS: Final = 64  # at a time: a quarter of a megabyte, which is what credit allows


@dataclass(frozen=True, slots=True)
class GuestBuffer:
    """Room for a header and, in `payload`, for `room` bytes."""

    chain: Chain
    payload: list[memoryview]
    room: int


class Outbox:
    """Send packets to the guest.

    Args:
        queue: Returns the queue, or None while it may not be used.
        publish: Shows the guest what was pushed.
        muxer: Has the control packets and makes headers.
    """

    def __init__(self, queue: Callable[[], SplitQueue | None], publish: Callable[[], None], muxer: Muxer) -> None:
        self._queue = queue
        self._publish = publish
        self._muxer = muxer
        self._waiting: dict[Callable[[], None], None] = {}  # in order of arrival
        self.sent = 0

    def kicked(self) -> None:
        """The guest offered buffers: control packets first, then those who wait are called."""
        self.flush()
        waiting, self._waiting = self._waiting, {}
        for resume in waiting:
            resume()

    def wait(self, resume: Callable[[], None]) -> None:
        """Call `resume` once when the guest has offered buffers."""
        self._waiting[resume] = None

    def flush(self) -> None:
        """Send control packets while there are buffers."""
        queue = self._queue()
        if queue is None:
            return
        while self._muxer.control_waits:
            buffer = self._take_one(queue, 0, first=True)
            if buffer is None:
                break
            header = self._muxer.next_control()
            if header is None:
                queue.rewind(1)
                break
            scatter(buffer.chain.writable, header.pack())
            queue.push(buffer.chain.head, HEADER_SIZE)
        self._publish()

    def take(self, length: int, packets: int) -> list[GuestBuffer]:
        """Buffers for up to `length` bytes in up to `packets` packets. They have to go through :meth:`send` at once."""
        queue = self._queue()
        buffers: list[GuestBuffer] = []
        if queue is None:
            return buffers
        packets = min(packets, MAX_BUFFERS)
        while length > 0 and len(buffers) < packets:
            buffer = self._take_one(queue, length, first=not buffers)
            if buffer is None:
                break
            buffers.append(buffer)
            length -= buffer.room
        return buffers

    def send(self, connection: Connection, buffers: list[GuestBuffer], length: int) -> int:
        """Send the first `length` bytes that `buffers` hold, and give unused buffers back to the queue.

        Returns:
            How many buffers were used.
        """
        queue = self._queue()
        if queue is None:
            return 0
        self.sent += length
        used = 0
        while length > 0:
            buffer = buffers[used]
            part = min(length, buffer.room)
            scatter(clip(buffer.chain.writable, 0, HEADER_SIZE), self._muxer.data_header(connection, part).pack())
            queue.push(buffer.chain.head, HEADER_SIZE + part)
            length -= part
            used += 1
        queue.rewind(len(buffers) - used)
        self._publish()
        return used

    @staticmethod
    def _take_one(queue: SplitQueue, length: int, *, first: bool) -> GuestBuffer | None:
        """The next buffer with room for a header and, if `length` is not 0, for data.

        Unusable ones go back with length 0, but only as the first: the queue gives back in order, so one between
        buffers that may still be given back ends the row instead.
        """
        while (chain := queue.pop()) is not None:
            room = total(chain.writable) - HEADER_SIZE
            if room >= (1 if length else 0):
                room = min(room, length, MAX_PACKET)
                return GuestBuffer(chain, clip(chain.writable, HEADER_SIZE, room), room)
            if not first:
                queue.rewind(1)
                return None
            queue.push(chain.head, 0)
        return None
