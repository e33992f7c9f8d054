"""The life of one vsock connection, seen from the device (devices.md §5.4).

Core: a table and the state that goes with it.

    DIALLING   the guest asked; a host socket is being connected
    OFFERED    a host program asked; the guest has not answered
    OPEN       both ways, or one way after a half-close
    DRAINING   the guest closed; what it sent before still goes to the host, then RST
    CLOSED     gone from the muxer

Rules:

1. An input that a state does not list breaks the connection: RST to the guest, CLOSED. It never breaks the device.
2. RST and time-outs close from every state.
3. A half-close keeps the state OPEN: SHUTDOWN with one flag is for one direction. Both flags, at once or one after the
   other, are GUEST_CLOSED.
4. The other side's end is announced only after all that came before it was passed on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

from alcove.devices.vsock.credit import Credit
from alcove.devices.vsock.packet import Shutdown
from alcove.errors import ProtocolError


class State(Enum):
    """Where a connection is in its life."""

    DIALLING = auto()
    OFFERED = auto()
    OPEN = auto()
    DRAINING = auto()
    CLOSED = auto()


class Input(Enum):
    """What happens to a connection."""

    GUEST_ACCEPTED = auto()  # RESPONSE
    GUEST_DATA = auto()  # RW
    GUEST_CREDIT = auto()  # CREDIT_UPDATE, CREDIT_REQUEST
    GUEST_HALF_CLOSED = auto()  # SHUTDOWN with one flag so far
    GUEST_CLOSED = auto()  # SHUTDOWN with both
    GUEST_RESET = auto()  # RST
    HOST_CONNECTED = auto()
    HOST_ENDED = auto()  # end of file from the host
    HOST_DEAF = auto()  # the host takes no more, and may still send
    HOST_FAILED = auto()
    FLUSHED = auto()  # all that the guest sent before it closed is with the host
    TIMED_OUT = auto()


TRANSITIONS: Final[dict[State, dict[Input, State]]] = {
    State.DIALLING: {
        Input.GUEST_CREDIT: State.DIALLING,
        Input.GUEST_RESET: State.CLOSED,
        Input.HOST_CONNECTED: State.OPEN,
        Input.HOST_FAILED: State.CLOSED,
        Input.TIMED_OUT: State.CLOSED,
    },
    State.OFFERED: {
        Input.GUEST_ACCEPTED: State.OPEN,
        Input.GUEST_RESET: State.CLOSED,
        Input.HOST_FAILED: State.CLOSED,
        Input.TIMED_OUT: State.CLOSED,
    },
    State.OPEN: {
        Input.GUEST_DATA: State.OPEN,
        Input.GUEST_CREDIT: State.OPEN,
        Input.GUEST_HALF_CLOSED: State.OPEN,
        Input.GUEST_CLOSED: State.DRAINING,
        Input.GUEST_RESET: State.CLOSED,
        Input.HOST_ENDED: State.OPEN,
        Input.HOST_DEAF: State.OPEN,
        Input.HOST_FAILED: State.CLOSED,
        Input.TIMED_OUT: State.CLOSED,
    },
    State.DRAINING: {
        Input.GUEST_CREDIT: State.DRAINING,
        Input.GUEST_HALF_CLOSED: State.DRAINING,
        Input.GUEST_CLOSED: State.DRAINING,
        Input.GUEST_RESET: State.CLOSED,
        Input.HOST_ENDED: State.DRAINING,
        Input.HOST_DEAF: State.DRAINING,
        Input.HOST_FAILED: State.CLOSED,
        Input.FLUSHED: State.CLOSED,
        Input.TIMED_OUT: State.CLOSED,
    },
    State.CLOSED: {},
}


class Key(NamedTuple):
    """What tells connections apart; the parent has two CIDs, 2 and 3 (§5.5)."""

    host_cid: int
    host_port: int
    guest_port: int


@dataclass(slots=True, eq=False)
class Connection:
    """One connection: where it is, what each side has ended, and its credit."""

    key: Key
    state: State
    credit: Credit = field(default_factory=Credit)
    guest_shutdown: Shutdown = Shutdown.NONE
    host_shutdown: Shutdown = Shutdown.NONE
    update_queued: bool = False  # a CREDIT_UPDATE waits to leave
    request_queued: bool = False  # a CREDIT_REQUEST does

    def step(self, happened: Input) -> None:
        """Move along the table.

        Raises:
            ProtocolError: The table has no such move.
        """
        following = TRANSITIONS[self.state].get(happened)
        if following is None:
            raise ProtocolError(f"vsock: {happened.name} in state {self.state.name}")
        self.state = following
