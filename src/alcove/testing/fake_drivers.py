"""The guest's drivers of NSM and vsock, on a FakeGuest (nsm.md §1.1; devices.md §5)."""

from __future__ import annotations

from typing import Final

from alcove.devices.nsm.messages import MAX_RESPONSE
from alcove.devices.vsock.packet import HEADER_SIZE, STREAM, Header, Op
from alcove.testing.fake_guest import FakeGuest
from alcove.types import PARENT_CID, Cid

GUEST_BUFFER: Final = 256 * 1024  # buf_alloc of a Linux guest
RX_BUFFER: Final = 3776  # one descriptor, as new kernels post them (§5.2)


class FakeNsmDriver:
    """Linux's drivers/misc/nsm.c: two chains, one kick, one completion, two used entries in order."""

    def __init__(self, guest: FakeGuest, *, timeout: float = 30.0) -> None:
        self._queue = guest.queues[0]
        self._timeout = timeout

    def request(self, data: bytes, *, room: int = MAX_RESPONSE) -> bytes:
        """One exchange.

        Raises:
            TimeoutError: No interrupt came.
            LookupError: The used entries were missing or in the wrong order (ENODATA in Linux).
        """
        request = self._queue.add(readable=[data])
        response = self._queue.add(writable=[room])
        self._queue.kick()
        while True:
            if not self._queue.wait_interrupt(self._timeout):
                raise TimeoutError("no answer from the NSM")
            first = self._queue.get_used()
            if first is not None:  # else the interrupt was an earlier, spurious one
                break
        second = self._queue.get_used()
        if second is None or (first[0], first[2], second[0]) != (request, 0, response):
            raise LookupError("wrong response buffer")
        return second[1]


class FakeVsockDriver:
    """A guest that sends and receives vsock packets, without sockets of its own.

    Args:
        guest: With two queues, RX and TX.
        cid: The guest's CID.
        buffers: How many RX buffers to keep on offer.
        buffer_size: Bytes of each.
    """

    def __init__(self, guest: FakeGuest, cid: Cid, *, buffers: int = 64, buffer_size: int = RX_BUFFER) -> None:
        self._rx, self._tx = guest.queues
        self.cid = cid
        self._buffer_size = buffer_size
        self.offer(buffers)

    def offer(self, buffers: int) -> None:
        """Offer RX buffers."""
        for _ in range(buffers):
            self._rx.add(writable=[self._buffer_size])
        self._rx.kick()

    def send(
        self,
        op: Op,
        *,
        port: int,
        own_port: int = 1000,
        payload: bytes = b"",
        flags: int = 0,
        fwd_cnt: int = 0,
        buf_alloc: int = GUEST_BUFFER,
        cid: int = PARENT_CID,
        kind: int = STREAM,
        src_cid: int | None = None,
        length: int | None = None,
        cut: int | None = None,
    ) -> None:
        """Send a packet from `own_port` to the parent's `port` and wait until the device has taken it.

        Args:
            op: What it is.
            port: The parent's port.
            own_port: The guest's port.
            payload: Its data.
            flags: Of SHUTDOWN.
            fwd_cnt: The guest's counter.
            buf_alloc: The guest's buffer.
            cid: The CID that the parent is addressed by.
            kind: The packet's type.
            src_cid: Another source than the guest's own CID.
            length: Another length than the payload's.
            cut: Put the first `cut` bytes of the packet into a descriptor of their own.
        """
        size = len(payload) if length is None else length
        source = self.cid if src_cid is None else src_cid
        header = Header(source, cid, own_port, port, size, kind, op, flags, buf_alloc, fwd_cnt).pack()
        packet = header + payload
        self._tx.add(readable=[packet] if cut is None else [packet[:cut], packet[cut:]])
        self._tx.kick()
        self._tx.wait_used()

    def receive(self, timeout: float = 30.0, *, offer: bool = True) -> tuple[Header, bytes]:
        """The next packet from the device; `offer` posts its buffer again.

        Raises:
            TimeoutError: There was none in time.
        """
        _, data, _ = self._rx.wait_used(timeout)
        if offer:
            self.offer(1)
        header = Header.parse(data)
        return header, data[HEADER_SIZE : HEADER_SIZE + header.length]
