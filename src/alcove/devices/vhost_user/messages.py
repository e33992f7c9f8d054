"""vhost-user messages: header, requests, feature bits (devices.md §3.1-§3.3; QEMU docs/interop/vhost-user.rst).

Core: bytes in, values out.

    0   4   u32 request
    4   4   u32 flags     bits 0-1 version = 1, bit 2 reply, bit 3 need_reply
    8   4   u32 size      of the payload that follows
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import Final, Self

from alcove.errors import ProtocolError

HEADER: Final = struct.Struct("<III")
U64: Final = struct.Struct("<Q")
VRING_STATE: Final = struct.Struct("<II")  # index, value
VRING_ADDRESS: Final = struct.Struct("<IIQQQQ")  # index, flags, descriptors, used, available, log
CONFIG: Final = struct.Struct("<III")  # offset, size, flags; content follows
_REGION_COUNT: Final = struct.Struct("<II")  # n, padding
_REGION: Final = struct.Struct("<QQQQ")  # guest physical, size, user address, mmap offset

VERSION: Final = 0x1
VERSION_MASK: Final = 0x3
REPLY: Final = 0x4
NEED_REPLY: Final = 0x8
MAX_PAYLOAD: Final = 4096  # the largest of §3.2 is SET_MEM_TABLE with 8 regions, 264 bytes
MAX_REGIONS: Final = 8  # VHOST_MEMORY_BASELINE_NREGIONS of vhost-user.rst; also the most descriptors in a message
INDEX_MASK: Final = 0xFF  # of SET_VRING_KICK, CALL and ERR
NO_DESCRIPTOR: Final = 0x100


class Request(IntEnum):
    """The requests of §3.2 that a device with our features gets."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24


class Feature(IntFlag):
    """Virtio feature bits (§3.3)."""

    VHOST_USER_PROTOCOL = 1 << 30
    VERSION_1 = 1 << 32


class ProtocolFeature(IntFlag):
    """vhost-user protocol feature bits (§3.3)."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9


@dataclass(frozen=True, slots=True)
class Header:
    """The 12 bytes before a payload; `request` may be one that :class:`Request` does not know."""

    request: int
    flags: int
    size: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a request's header.

        Raises:
            ProtocolError: For another version, a reply, or a payload that no request has.
        """
        header = cls(*HEADER.unpack(data))
        if header.flags & VERSION_MASK != VERSION or header.flags & REPLY:
            raise ProtocolError(f"vhost-user: flags {header.flags:#x} are not those of a request")
        if header.size > MAX_PAYLOAD:
            raise ProtocolError(f"vhost-user: a payload of {header.size} bytes; the limit is {MAX_PAYLOAD}")
        return header

    @property
    def need_reply(self) -> bool:
        """The front-end wants an acknowledgement."""
        return bool(self.flags & NEED_REPLY)


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """One row of the memory table; all in bytes."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int

    def __post_init__(self) -> None:
        end = max(self.guest_address, self.user_address, self.mmap_offset) + self.size
        if not self.size or end >= 1 << 64:
            raise ProtocolError("vhost-user: a memory region is empty or wraps around")


def parse_regions(payload: bytes) -> tuple[RegionSpec, ...]:
    """The rows of SET_MEM_TABLE.

    Raises:
        ProtocolError: For no rows, too many, a payload of another size, or rows that overlap.
    """
    if len(payload) < _REGION_COUNT.size:
        raise ProtocolError("vhost-user: a memory table without a count")
    count, _ = _REGION_COUNT.unpack_from(payload)
    if not 1 <= count <= MAX_REGIONS or len(payload) != _REGION_COUNT.size + count * _REGION.size:
        raise ProtocolError(f"vhost-user: a memory table of {count} regions in {len(payload)} bytes")
    regions = tuple(RegionSpec(*row) for row in _REGION.iter_unpack(payload[_REGION_COUNT.size :]))
    if _overlap((r.guest_address, r.size) for r in regions) or _overlap((r.user_address, r.size) for r in regions):
        raise ProtocolError("vhost-user: memory regions overlap")
    return regions


def _overlap(ranges: Iterable[tuple[int, int]]) -> bool:
    return any(start + size > after for (start, size), (after, _) in pairwise(sorted(ranges)))


def pack_regions(regions: tuple[RegionSpec, ...]) -> bytes:
    """The payload that :func:`parse_regions` reads."""
    rows = (_REGION.pack(r.guest_address, r.size, r.user_address, r.mmap_offset) for r in regions)
    return _REGION_COUNT.pack(len(regions), 0) + b"".join(rows)


def pack_message(request: int, payload: bytes = b"", *, flags: int = 0) -> bytes:
    """A whole message; the version is added to `flags`."""
    return HEADER.pack(request, VERSION | flags, len(payload)) + payload
