"""The control packets on their way to the guest.

Core: what is to be said in, headers out.

They wait in their own queue and go before data. Counters are filled in when a packet leaves, so what waits is never
out of date; a credit update, or a question for one, waits once for each connection.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from alcove.devices.vsock.connection import Connection, Key, State
from alcove.devices.vsock.packet import STREAM, Header, Op
from alcove.types import Cid


@dataclass(frozen=True, slots=True)
class _Control:
    key: Key
    op: Op
    flags: int = 0
    connection: Connection | None = None
    type: int = STREAM


class ControlQueue:
    """What waits for the guest with this CID."""

    def __init__(self, cid: Cid) -> None:
        self._cid = cid
        self._waiting: deque[_Control] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: Connection, op: Op, flags: int = 0) -> None:
        """Say something about a connection."""
        self._waiting.append(_Control(connection.key, op, flags, connection))

    def refuse(self, key: Key, type_: int) -> None:
        """RST for what is no connection, of the type that was tried."""
        self._waiting.append(_Control(key, Op.RST, type=type_))

    def update(self, connection: Connection) -> None:
        """Tell our counters."""
        if not connection.update_queued:
            connection.update_queued = True
            self.add(connection, Op.CREDIT_UPDATE)

    def ask(self, connection: Connection) -> None:
        """Ask for the guest's counters."""
        if not connection.request_queued:
            connection.request_queued = True
            self.add(connection, Op.CREDIT_REQUEST)

    def withdraw(self, connection: Connection) -> bool:
        """Take a connection's REQUEST back; False when it has left."""
        for control in self._waiting:
            if control.connection is connection and control.op == Op.REQUEST:
                self._waiting.remove(control)
                return True
        return False

    def forget(self, key: Key) -> None:
        """Say nothing more about what had this key."""
        self._waiting = deque(control for control in self._waiting if control.key != key)

    def clear(self) -> None:
        """Say nothing."""
        self._waiting.clear()

    def next(self) -> Header | None:
        """The next packet; taking it means that it leaves."""
        while self._waiting:
            control = self._waiting.popleft()
            connection = control.connection
            if connection is not None:
                if connection.state is State.CLOSED and control.op != Op.RST:
                    continue
                if control.op == Op.CREDIT_UPDATE:
                    connection.update_queued = False
                elif control.op == Op.CREDIT_REQUEST:
                    connection.request_queued = False
            return self._header(control, connection)
        return None

    def _header(self, control: _Control, connection: Connection | None) -> Header:
        buf_alloc, fwd_cnt = connection.credit.stamp() if connection is not None else (0, 0)
        key = control.key
        return Header(
            src_cid=key.host_cid,
            dst_cid=self._cid,
            src_port=key.host_port,
            dst_port=key.guest_port,
            length=0,
            type=control.type,
            op=control.op,
            flags=control.flags,
            buf_alloc=buf_alloc,
            fwd_cnt=fwd_cnt,
        )
