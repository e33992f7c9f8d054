"""What a vhost-user message means to a device (devices.md §3.2).

Core: values only.
"""

from __future__ import annotations

from dataclasses import dataclass

from alcove.devices.vhost_user.messages import RegionSpec


@dataclass(frozen=True, slots=True)
class FeaturesSet:
    """The driver is about to start; a memory table must follow (§6)."""

    features: int


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """A new memory table, which replaces the old; `fds[i]` backs `regions[i]`."""

    regions: tuple[RegionSpec, ...]
    fds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VringSize:
    """The number of entries of a ring."""

    index: int
    size: int


@dataclass(frozen=True, slots=True)
class VringAddress:
    """Where a ring's three parts are, in the front-end's user addresses (§3.7)."""

    index: int
    descriptors: int
    available: int
    used: int


@dataclass(frozen=True, slots=True)
class VringBase:
    """The next index to read from the available ring."""

    index: int
    base: int


@dataclass(frozen=True, slots=True)
class VringKick:
    """A new kick descriptor, or None for a ring that is to be polled."""

    index: int
    fd: int | None


@dataclass(frozen=True, slots=True)
class VringCall:
    """A new call descriptor: signal it at once (§3.6 rule 3). None: the guest wants no interrupts."""

    index: int
    fd: int | None


@dataclass(frozen=True, slots=True)
class VringEnabled:
    """A ring may be processed from now on (True), or no longer (False)."""

    index: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class VringStopped:
    """A ring stops; the caller answers with its next available index (rule 2)."""

    index: int


@dataclass(frozen=True, slots=True)
class UnusedDescriptors:
    """Descriptors to close."""

    fds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A request that the device does not know and did not offer."""

    request: int


Event = (
    FeaturesSet
    | MemoryTable
    | VringSize
    | VringAddress
    | VringBase
    | VringKick
    | VringCall
    | VringEnabled
    | VringStopped
    | UnusedDescriptors
    | Skipped
)
