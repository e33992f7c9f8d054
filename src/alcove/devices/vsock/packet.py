"""The header of a vsock packet (devices.md §5.1; virtio 1.2 §5.10.6, include/uapi/linux/virtio_vsock.h).

Core: bytes in, header out; header in, bytes out.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

_HEADER: Final = struct.Struct("<QQIIIHHIII")  # struct virtio_vsock_hdr, 44 bytes:
# src_cid dst_cid src_port dst_port length type op flags buf_alloc fwd_cnt
HEADER_SIZE: Final = _HEADER.size
MAX_PACKET: Final = 64 * 1024  # §5.1: largest payload
STREAM: Final = 1


class Op(IntEnum):
    """What a packet is for."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(IntFlag):
    """Flags of SHUTDOWN; a peer's flags accumulate."""

    NONE = 0
    RCV = 1
    SEND = 2
    BOTH = 3


class Header(NamedTuple):
    """One packet's header; every field is as it was on the wire.

    A tuple, since one is made for each packet: half the time of a frozen dataclass.
    """

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Header:
        """Read the first 44 bytes of `data`.

        Raises:
            struct.error: There are fewer.
        """
        return cls._make(_HEADER.unpack_from(data))

    def pack(self) -> bytes:
        """The 44 bytes."""
        return _HEADER.pack(*self)
