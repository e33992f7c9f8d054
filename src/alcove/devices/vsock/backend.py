"""The vsock device for QEMU: guest memory on one side, Unix sockets on the other (devices.md §5).

1. A packet of the guest goes through the muxer; its payload goes from guest memory straight to a host socket.
2. Bytes of a host socket are read straight into the buffers that the guest offered, each behind a header.
3. Control packets leave first. When the guest offers no buffers, or gives no credit, host sockets are not read.
4. Work per wake-up is bounded on both queues, so that other devices of the loop get their turn.
5. The guest's data that host sockets do not take is kept, up to BUFFER a connection (credit.py) and MAX_HELD in all;
   beyond, the connection that holds most is reset. Beyond the muxer's limits a REQUEST is refused with RST, and host
   programs wait: they are accepted once the guest has taken those before them.
6. The guest is told of packets taken in batches: it only frees their memory then, and each interrupt costs it more than
   the packet did. Packets to it are announced at once.
"""

from __future__ import annotations

import resource
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alcove.devices.reactor import Reactor, Timer
from alcove.devices.vhost_user.messages import Feature, ProtocolFeature
from alcove.devices.vhost_user.server import OnClosed, VhostUserServer
from alcove.devices.vhost_user.session import Session
from alcove.devices.virtio.queue import Chain
from alcove.devices.virtio.segments import clip, gather, total
from alcove.devices.vsock import events as ev
from alcove.devices.vsock.connection import Connection, State
from alcove.devices.vsock.dialer import dial
from alcove.devices.vsock.host_socket import Held
from alcove.devices.vsock.hybrid import HybridListener
from alcove.devices.vsock.muxer import MAX_CONNECTIONS, Muxer
from alcove.devices.vsock.outbox import Outbox
from alcove.devices.vsock.packet import HEADER_SIZE, MAX_PACKET, Header
from alcove.devices.vsock.stream import Stream
from alcove.errors import ProtocolError
from alcove.types import Cid, Port

RX: Final = 0
TX: Final = 1
_QUEUES: Final = 3  # devices.md §3.5: the event queue stays inside QEMU, and is counted all the same
_TX_BATCH: Final = 64  # packets per wake-up
MAX_HELD: Final = 32 << 20  # bytes; 128 connections with a reader that does not read, at full credit
RESERVED_DESCRIPTORS: Final = 256  # of this process, for all but connections: control and hybrid clients, devices
_TAKEN_BATCH: Final = 32  # descriptors, a quarter of QEMU's ring
_TAKEN_SECONDS: Final = 0.002  # the longest that a packet taken is not announced
_MAX_LINGERING: Final = 64  # sockets that still take data of connections which the guest has reset


@dataclass(frozen=True, slots=True)
class Counters:
    """What went through since the start, and what is open; bytes are of payload."""

    connections: int
    open_now: int
    bytes_from_guest: int
    bytes_to_guest: int


def connection_limit() -> int:
    """How many connections this process can have, and still accept a terminate command."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(soft - RESERVED_DESCRIPTORS, soft // 2))


class VsockBackend:
    """Serve vsock to one QEMU.

    Args:
        reactor: The event loop.
        listener: A listening Unix socket that QEMU connects to; the caller closes it.
        cid: The guest's CID.
        host_socket: Where local programs connect to reach the guest; made here, removed on close.
        port_path: Where a guest's connection to this port of the parent goes; None refuses it.
        on_closed: Called once when the device ends by itself.

    Raises:
        MachineError: `host_socket` cannot be made.
    """

    def __init__(
        self,
        reactor: Reactor,
        listener: socket.socket,
        cid: Cid,
        *,
        host_socket: Path,
        port_path: Callable[[Port], Path | None],
        on_closed: OnClosed,
    ) -> None:
        self._reactor = reactor
        self._cid = cid
        self._port_path = port_path
        self._on_closed = on_closed
        self._muxer = Muxer(cid, connection_limit())
        self._streams: dict[Connection, Stream] = {}
        self._held = Held()
        self._callers: deque[tuple[socket.socket, Port]] = deque()  # host programs whose turn it is not yet
        self._tx_stalled = False
        self._taken = 0  # descriptors whose packets were taken since the last interrupt
        self._taken_timer: Timer | None = None
        self._ran = False
        self._connections = 0
        self._bytes_from_guest = 0
        self._hybrid = HybridListener(reactor, host_socket, self._host_asks)
        self._server = VhostUserServer(
            reactor,
            listener,
            Session(
                features=Feature.VERSION_1 | Feature.VHOST_USER_PROTOCOL,
                protocol_features=ProtocolFeature.MQ | ProtocolFeature.CONFIG,
                queues=_QUEUES,
                config=cid.to_bytes(8, "little"),
            ),
            rings=2,
            on_ring=self._ring,
            on_started=self._started,
            on_closed=self._device_ended,
        )
        self._outbox = Outbox(lambda: self._server.queue(RX), self._publish_rx, self._muxer)

    @property
    def counters(self) -> Counters:
        """What went through so far."""
        return Counters(self._connections, len(self._muxer), self._bytes_from_guest, self._outbox.sent)

    def close(self) -> None:
        """Drop every connection and QEMU; no callback follows."""
        self._server.close()
        if self._taken_timer is not None:
            self._taken_timer.cancel()
        self._hybrid.close()
        while self._callers:
            self._callers.popleft()[0].close()
        self._drop_all()

    def _device_ended(self, reason: str | None) -> None:
        self.close()
        self._on_closed(reason)

    def _started(self, index: int, base: int) -> None:
        if index == RX:
            # a ring that starts at 0 after it has run belongs to a guest that started anew
            if self._ran and base == 0:
                self._drop_all()
            self._ran = True

    def _drop_all(self) -> None:
        self._muxer.reset()
        for stream in list(self._streams.values()):
            stream.close()

    def _ring(self, index: int) -> None:
        if index == RX:
            self._outbox.kicked()
        if index == TX or self._tx_stalled:
            self._serve_tx()

    # guest → host

    def _serve_tx(self) -> None:
        queue = self._server.queue(TX)
        if queue is None:
            return
        chain: Chain | None = None
        for _ in range(_TX_BATCH):
            self._tx_stalled = self._muxer.backlog_full
            chain = None if self._tx_stalled else queue.pop()
            if chain is None:
                break
            self._packet(chain)
            queue.push(chain.head, 0)
            self._taken += len(chain.readable)
        self._announce_taken()
        self._outbox.flush()
        if chain is not None or (self._tx_stalled and not self._muxer.backlog_full):
            self._reactor.call_soon(self._server.guard, self._serve_tx)

    def _publish_rx(self) -> None:
        self._server.publish(RX)

    def _announce_taken(self) -> None:
        if self._server.publish(TX, interrupt=False):
            self._taken = max(self._taken, 1)  # the queue itself gives wrong chains back
        if self._taken >= _TAKEN_BATCH:
            self._interrupt_taken()
        elif self._taken and self._taken_timer is None:
            self._taken_timer = self._reactor.call_later(_TAKEN_SECONDS, self._server.guard, self._taken_late)

    def _taken_late(self) -> None:
        self._taken_timer = None
        if self._taken:
            self._interrupt_taken()

    def _interrupt_taken(self) -> None:
        self._taken = 0
        self._server.interrupt(TX)

    def _packet(self, chain: Chain) -> None:
        raw = gather(chain.readable, HEADER_SIZE)
        if len(raw) < HEADER_SIZE:
            return
        available = min(total(chain.readable) - HEADER_SIZE, MAX_PACKET)
        for event in self._muxer.receive(Header.parse(raw), available):
            self._handle(event, chain)

    def _handle(self, event: ev.Event, chain: Chain) -> None:
        if isinstance(event, ev.Dial):
            self._dial(event.connection)
            return
        stream = self._streams.get(event.connection)
        if stream is None:
            return
        match event:
            case ev.Data(_, length):
                self._bytes_from_guest += length
                stream.from_guest(clip(chain.readable, HEADER_SIZE, length))
                if self._held.count > MAX_HELD:
                    max(self._streams.values(), key=lambda each: each.held).drop()
            case ev.Accepted():
                self._accept_more()
                stream.accepted()
            case ev.Progress():
                stream.progress()
            case ev.GuestEnded():
                stream.guest_ended()
            case ev.GuestDeaf():
                stream.guest_deaf()
            case ev.Closing() | ev.Gone():
                stream.finish()
                if len(self._streams) - len(self._muxer) > _MAX_LINGERING:
                    stream.close()

    def _dial(self, connection: Connection) -> None:
        try:
            path = self._port_path(Port(connection.key.host_port))
        except OSError:
            path = None
        if path is None:
            self._muxer.failed(connection)
            return
        guest = self._cid, Port(connection.key.guest_port)
        dial(
            self._reactor,
            path,
            guest,
            lambda sock: self._server.guard(self._dialled, connection, sock),
            wanted=lambda: connection.state is State.DIALLING,
        )

    def _dialled(self, connection: Connection, sock: socket.socket | None) -> None:
        if connection.state is not State.DIALLING:  # the guest gave up
            if sock is not None:
                sock.close()
        elif sock is None:
            self._muxer.failed(connection)
        else:
            self._muxer.connected(connection)
            self._add(connection, sock).open()
        self._outbox.flush()

    # host → guest

    def _host_asks(self, sock: socket.socket, port: Port) -> None:
        if self._muxer.offers_full:
            self._hybrid.pause()  # those that are accepted already, at most a few, wait here
            self._callers.append((sock, port))
        else:
            self._offer(sock, port)

    def _offer(self, sock: socket.socket, port: Port) -> None:
        try:
            connection = self._muxer.open(port)
        except ProtocolError:
            sock.close()
            return
        self._add(connection, sock).offer()
        self._server.guard(self._outbox.flush)

    def _add(self, connection: Connection, sock: socket.socket) -> Stream:
        self._connections += 1
        stream = self._streams[connection] = Stream(
            connection,
            sock,
            reactor=self._reactor,
            guard=self._server.guard,
            muxer=self._muxer,
            outbox=self._outbox,
            forget=self._forget,
            held=self._held,
        )
        return stream

    def _forget(self, connection: Connection) -> None:
        self._streams.pop(connection, None)
        self._accept_more()

    def _accept_more(self) -> None:
        while self._callers and not self._muxer.offers_full:
            self._offer(*self._callers.popleft())
        if not self._callers:
            self._hybrid.resume()
