"""What a packet of the guest means for the host: the muxer's events.

Core: values only.
"""

from __future__ import annotations

from dataclasses import dataclass

from alcove.devices.vsock.connection import Connection


@dataclass(frozen=True, slots=True)
class Dial:
    """The guest wants a connection to a port of the parent: answer with `connected` or `failed`."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Accepted:
    """The guest accepted a connection from the host."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Data:
    """The packet's payload is for the host; `forwarded` is to follow."""

    connection: Connection
    length: int


@dataclass(frozen=True, slots=True)
class GuestEnded:
    """The guest sends no more: tell the host after everything before it."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class GuestDeaf:
    """The guest takes no more: read no more from the host."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Closing:
    """The guest closed: flush to the host, then call `flushed`."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Progress:
    """The guest's counters arrived: more may be sent now."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Gone:
    """The connection is over; what the guest sent before still belongs to the host."""

    connection: Connection


Event = Dial | Accepted | Data | GuestEnded | GuestDeaf | Closing | Progress | Gone
