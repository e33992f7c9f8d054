"""How much each side of a connection may send (devices.md §5.3).

Core: counters only.

Toward the guest: never more than `peer_buffer - (sent - peer_forwarded)` bytes, and never more than MAX_OUTSTANDING
packets, because newer guest kernels charge each queued packet for overhead that credit does not express.

From the guest: never more than BUFFER bytes that the host has not taken yet. The guest limits itself to the smaller of
both buffers, so an update is due when *that* window runs low; measured against our buffer alone, both would wait.
"""

from __future__ import annotations

from collections import deque
from typing import Final

BUFFER: Final = 256 * 1024  # the default of a Linux guest; a larger one would gain nothing (§5.3)
MAX_OUTSTANDING: Final = 128  # packets; §5.3: guests reset at about 455
_MASK: Final = 0xFFFFFFFF  # counters on the wire are modulo 2³²


class Credit:
    """The counters of one connection, all in bytes."""

    __slots__ = ("_advertised", "_forwarded", "_marks", "_peer_buffer", "_peer_forwarded", "_received", "_sent")

    def __init__(self) -> None:
        self._received = 0
        self._forwarded = 0
        self._advertised = 0
        self._sent = 0
        self._peer_buffer = 0
        self._peer_forwarded = 0
        self._marks: deque[int] = deque()  # `_sent` at the end of each packet that the guest has not passed on

    def learn(self, buf_alloc: int, fwd_cnt: int) -> None:
        """Take the counters of a packet from the guest; every packet carries them."""
        self._peer_buffer = buf_alloc
        self._peer_forwarded = fwd_cnt
        done = self._sent - self._outstanding()
        while self._marks and self._marks[0] <= done:
            self._marks.popleft()

    def allowance(self) -> int:
        """How many bytes may go to the guest now."""
        if not self.packets():
            return 0
        return max(self._peer_buffer - self._outstanding(), 0)

    def packets(self) -> int:
        """How many packets with data may go to the guest now."""
        return MAX_OUTSTANDING - len(self._marks)

    def packets_run_low(self) -> bool:
        """Whether small packets use up the second limit long before the first, so that the guest should be asked.

        A guest tells of progress by bytes: it would never do so by itself (§5.3).
        """
        return len(self._marks) >= MAX_OUTSTANDING // 2 and self._outstanding() <= self._peer_buffer // 4

    def send(self, length: int) -> None:
        """A packet with `length` bytes goes to the guest."""
        self._sent += length
        self._marks.append(self._sent)

    def receive(self, length: int) -> bool:
        """The guest sent `length` bytes.

        Returns:
            Whether it was allowed to.
        """
        self._received += length
        return self._received - self._forwarded <= BUFFER

    def forward(self, length: int) -> None:
        """The host took `length` bytes."""
        self._forwarded += length

    def update_due(self) -> bool:
        """Whether the guest has to be told of progress before it stops."""
        window = min(BUFFER, self._peer_buffer)
        seen_by_guest = window - (self._received - self._advertised)
        return self._forwarded != self._advertised and seen_by_guest <= window // 2

    def stamp(self) -> tuple[int, int]:
        """`buf_alloc` and `fwd_cnt` of a header that leaves now, which counts as an update."""
        self._advertised = self._forwarded
        return BUFFER, self._forwarded & _MASK

    def _outstanding(self) -> int:
        return (self._sent - self._peer_forwarded) & _MASK
