"""The queue on which packets go to the guest (devices.md §5.2).

Core: guest buffers in, packets out.

The guest offers buffers of its own choice, about 3.7 KiB each in new kernels. Data is cut to fit them, control packets
go first, and nothing is read from the host before there is a buffer to read it into.

Streams share the buffers in turns. Who finds none waits in line; while there is a line, everybody joins its end, and a
turn is QUANTUM packets. So what waits behind bulk transfers waits for one turn of each, not for their end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from alcove.devices.virtio.queue import Chain, SplitQueue
from alcove.devices.virtio.segments import clip, scatter, total
from alcove.devices.vsock.connection import Connection
from alcove.devices.vsock.muxer import Muxer
from alcove.devices.vsock.packet import HEADER_SIZE, MAX_PACKET

MAX_BUFFERS: Final = 64  # at a time: a quarter of a megabyte, which is what credit allows
QUANTUM: Final = 16  # packets of a turn while others wait


class GuestBuffer(NamedTuple):
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
        self._line: OrderedDict[Callable[[], None], None] = OrderedDict()
        self._dry = False  # the last look found no buffer
        self.sent = 0

    @property
    def contended(self) -> bool:
        """Whether somebody waits for buffers, so that it is not the caller's turn."""
        return bool(self._line)

    def kicked(self) -> None:
        """The guest offered buffers: control packets first, then those in line have their turns."""
        self.flush()
        self._dry = False
        for _ in range(len(self._line)):
            if self._dry or not self._line:
                break
            turn, _none = self._line.popitem(last=False)
            turn()

    def wait(self, turn: Callable[[], None], *, first: bool = False) -> None:
        """Stand in line: `turn` is called once. `first` is for who had a turn and found no buffer."""
        self._line[turn] = None
        if first:
            self._line.move_to_end(turn, last=False)

    def leave(self, turn: Callable[[], None]) -> None:
        """Stand in line no more."""
        self._line.pop(turn, None)

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
        packets = min(packets, QUANTUM if self._line else MAX_BUFFERS)
        while length > 0 and len(buffers) < packets:
            buffer = self._take_one(queue, length, first=not buffers)
            if buffer is None:
                self._dry = not buffers
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
            scatter(buffer.chain.writable, self._muxer.data_header(connection, part).pack())
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
            segments = chain.writable
            room = total(segments) - HEADER_SIZE
            if room >= (1 if length else 0):
                room = min(room, length, MAX_PACKET)
                if len(segments) == 1:  # as new kernels offer them
                    return GuestBuffer(chain, [segments[0][HEADER_SIZE : HEADER_SIZE + room]], room)
                return GuestBuffer(chain, clip(segments, HEADER_SIZE, room), room)
            if not first:
                queue.rewind(1)
                return None
            queue.push(chain.head, 0)
        return None
