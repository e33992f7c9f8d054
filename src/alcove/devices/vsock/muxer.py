"""All vsock connections of one guest (devices.md §5).

Core: headers and host events in, events and headers out. Payloads never pass through here.

Rules:

1. Only packets from the guest's own CID count; others are dropped. The parent is CID 2 and CID 3, and answers from the
   one that was addressed; any other destination, and any type but stream, is refused with RST (§5.4 rule 7, §5.5).
2. A packet for an unknown connection is refused with RST; an RST is never answered.
3. Control packets wait in a queue of their own (`control`) and go before data.
4. The guest can make that queue grow; a caller stops taking its packets while `backlog_full`.
5. Connections are bounded, and so are those that no listener has taken yet: beyond `limit` or MAX_DIALLING a
   REQUEST is refused with RST, and `open` raises.
6. A guest has little time to take what the host asks for, so a caller asks for few at a time: `offers_full`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from alcove.devices.vsock.connection import Connection, Input, Key, State
from alcove.devices.vsock.control import ControlQueue
from alcove.devices.vsock.events import Accepted, Closing, Data, Dial, Event, Gone, GuestDeaf, GuestEnded, Progress
from alcove.devices.vsock.packet import STREAM, Header, Op, Shutdown
from alcove.errors import ProtocolError
from alcove.types import HOST_CID, PARENT_CID, Cid, Port

MAX_CONNECTIONS: Final = 4096  # a descriptor and some 4 KiB each; what is beyond is refused with RST
MAX_DIALLING: Final = 256  # connections whose listener has not taken them yet; what is beyond is refused with RST
MAX_OFFERED: Final = 32  # connections that the guest has not taken yet; a slow one takes these well within its time
MAX_BACKLOG: Final = 256  # control packets; more than any guest makes us queue while it offers buffers
_FIRST_LOCAL_PORT: Final = 1 << 30  # §5.6: [2³⁰, 2³¹), round robin
_LOCAL_PORTS: Final = 1 << 30
_RW: Final = Op.RW.value  # plain: looking up a member of an enum costs as much as the rest of a header


class Muxer:
    """The connections of the guest with this CID, at most `limit` of them."""

    def __init__(self, cid: Cid, limit: int = MAX_CONNECTIONS) -> None:
        self._cid = cid
        self._limit = limit
        self._connections: dict[Key, Connection] = {}
        self._control = ControlQueue(cid)
        self._next_port = 0
        self._dialling = 0
        self._offered = 0

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def control_waits(self) -> bool:
        """Whether `next_control` may have something."""
        return bool(self._control)

    @property
    def backlog_full(self) -> bool:
        """Take no packet from the guest until it has taken some of ours."""
        return len(self._control) >= MAX_BACKLOG

    @property
    def offers_full(self) -> bool:
        """Ask the guest for no connection until it has taken or refused one of ours, or let its time go by."""
        return self._offered >= MAX_OFFERED

    def receive(self, header: Header, available: int) -> Iterator[Event]:
        """Take a packet from the guest.

        Args:
            header: Its header.
            available: Bytes that follow the header in its buffers.
        """
        if header.src_cid != self._cid:
            return
        key = Key(header.dst_cid, header.dst_port, header.src_port)
        if header.type != STREAM or header.dst_cid not in (HOST_CID, PARENT_CID):
            self._refuse(key, header)
            return
        connection = self._connections.get(key)
        if header.op == Op.REQUEST:
            yield from self._request(key, header)
        elif connection is None:
            self._refuse(key, header)
        else:
            yield from self._packet(connection, header, available)

    def open(self, port: Port) -> Connection:
        """Ask the guest for a connection to one of its ports.

        Raises:
            ProtocolError: There are too many connections.
        """
        if len(self._connections) >= self._limit:
            raise ProtocolError(f"vsock: {self._limit} connections are open")
        while True:
            key = Key(PARENT_CID, _FIRST_LOCAL_PORT + self._next_port, port)
            self._next_port = (self._next_port + 1) % _LOCAL_PORTS
            if key not in self._connections:
                break
        connection = self._connections[key] = Connection(key, State.OFFERED)
        self._offered += 1
        self._control.add(connection, Op.REQUEST)
        return connection

    def connected(self, connection: Connection) -> None:
        """The host took the guest's connection."""
        self._step(connection, Input.HOST_CONNECTED)
        self._control.add(connection, Op.RESPONSE)

    def ended(self, connection: Connection) -> None:
        """The host sends no more, and all it sent has left."""
        connection.step(Input.HOST_ENDED)
        self._shut(connection, Shutdown.SEND)

    def deaf(self, connection: Connection) -> None:
        """The host takes no more."""
        connection.step(Input.HOST_DEAF)
        self._shut(connection, Shutdown.RCV)

    def failed(self, connection: Connection) -> None:
        """The host refused the connection or broke it."""
        self._close(connection, Input.HOST_FAILED)

    def flushed(self, connection: Connection) -> None:
        """All that the guest sent before it closed is with the host: RST frees the guest's port at once (§5.4)."""
        self._close(connection, Input.FLUSHED)

    def timed_out(self, connection: Connection) -> None:
        """The guest did not answer. A request that never left is taken back instead of reset."""
        if self._control.withdraw(connection):
            self._forget(connection, Input.TIMED_OUT)
        else:
            self._close(connection, Input.TIMED_OUT)

    def forwarded(self, connection: Connection, length: int) -> None:
        """The host took `length` bytes of the guest's data."""
        connection.credit.forward(length)
        if connection.state is State.OPEN and connection.credit.update_due():
            self._control.update(connection)

    def ask_for_credit(self, connection: Connection) -> None:
        """Ask the guest for its counters."""
        self._control.ask(connection)

    def next_control(self) -> Header | None:
        """The next control packet; taking it means that it leaves."""
        return self._control.next()

    def data_header(self, connection: Connection, length: int) -> Header:
        """The header of a data packet that leaves now; `length` is within the allowance."""
        credit, key = connection.credit, connection.key
        credit.send(length)
        buf_alloc, fwd_cnt = credit.stamp()
        return Header(
            key.host_cid, self._cid, key.host_port, key.guest_port, length, STREAM, _RW, 0, buf_alloc, fwd_cnt
        )

    def reset(self) -> None:
        """The guest started anew: nothing of before is left."""
        for connection in self._connections.values():
            connection.state = State.CLOSED
        self._connections.clear()
        self._control.clear()
        self._dialling = self._offered = 0

    def _request(self, key: Key, header: Header) -> Iterator[Event]:
        old = self._connections.get(key)
        if old is not None:  # §5.4 rule 8
            self._forget(old, Input.GUEST_RESET)
            yield Gone(old)
        # an answer to an earlier attempt would be taken for the answer to this one
        self._control.forget(key)
        if len(self._connections) >= self._limit or self._dialling >= MAX_DIALLING:
            self._refuse(key, header)
            return
        connection = self._connections[key] = Connection(key, State.DIALLING)
        connection.credit.learn(header.buf_alloc, header.fwd_cnt)
        self._dialling += 1
        yield Dial(connection)

    def _packet(self, connection: Connection, header: Header, available: int) -> Iterator[Event]:
        connection.credit.learn(header.buf_alloc, header.fwd_cnt)
        try:
            yield from self._act(connection, header, available)
        except ProtocolError:
            self._close(connection, Input.TIMED_OUT)
            yield Gone(connection)
            return
        if connection.state is State.OPEN:
            yield Progress(connection)

    def _act(self, connection: Connection, header: Header, available: int) -> Iterator[Event]:
        match header.op:
            case Op.RW:
                yield self._data(connection, header.length, available)
            case Op.RESPONSE:
                self._step(connection, Input.GUEST_ACCEPTED)
                yield Accepted(connection)
            case Op.CREDIT_UPDATE:
                connection.step(Input.GUEST_CREDIT)
            case Op.CREDIT_REQUEST:
                connection.step(Input.GUEST_CREDIT)
                self._control.update(connection)
            case Op.SHUTDOWN:
                yield from self._shutdown(connection, Shutdown(header.flags & Shutdown.BOTH))
            case Op.RST:
                self._forget(connection, Input.GUEST_RESET)
                yield Gone(connection)
            case _:  # INVALID and what is not defined: drop (§5.1)
                pass

    def _data(self, connection: Connection, length: int, available: int) -> Event:
        connection.step(Input.GUEST_DATA)
        if length > available:
            raise ProtocolError(f"vsock: a packet of {length} bytes in a buffer of {available}")
        if connection.guest_shutdown & Shutdown.SEND:
            raise ProtocolError("vsock: data after the end of data")
        if not connection.credit.receive(length):
            raise ProtocolError("vsock: more data than there is credit for")
        return Data(connection, length)

    def _shutdown(self, connection: Connection, flags: Shutdown) -> Iterator[Event]:
        new = flags & ~connection.guest_shutdown
        connection.guest_shutdown |= flags
        was_open = connection.state is State.OPEN
        if connection.guest_shutdown == Shutdown.BOTH:
            connection.step(Input.GUEST_CLOSED)
            if was_open:
                yield Closing(connection)
            return
        connection.step(Input.GUEST_HALF_CLOSED)
        if new & Shutdown.SEND:
            yield GuestEnded(connection)
            self._shut(connection, Shutdown.NONE)
        if new & Shutdown.RCV:
            yield GuestDeaf(connection)

    def _shut(self, connection: Connection, flags: Shutdown) -> None:
        """Tell the guest what the host has ended; both flags when nothing is left to come either way."""
        flags |= connection.host_shutdown
        if connection.guest_shutdown & Shutdown.SEND and flags & Shutdown.SEND:
            flags = Shutdown.BOTH
        if flags != connection.host_shutdown and connection.state is State.OPEN:
            connection.host_shutdown = flags
            self._control.add(connection, Op.SHUTDOWN, flags)

    def _refuse(self, key: Key, header: Header) -> None:
        if header.op != Op.RST:
            self._control.refuse(key, header.type)

    def _close(self, connection: Connection, happened: Input) -> None:
        self._forget(connection, happened)
        self._control.add(connection, Op.RST)

    def _forget(self, connection: Connection, happened: Input) -> None:
        self._step(connection, happened)
        if self._connections.get(connection.key) is connection:
            del self._connections[connection.key]

    def _step(self, connection: Connection, happened: Input) -> None:
        was = connection.state
        connection.step(happened)
        if was is State.DIALLING and connection.state is not State.DIALLING:
            self._dialling -= 1
        elif was is State.OFFERED and connection.state is not State.OFFERED:
            self._offered -= 1
