"""A guest's memory, mapped from the descriptors that come with a memory table (devices.md §3.7)."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence

from alcove.devices.vhost_user.memory import GuestMemory, Region
from alcove.devices.vhost_user.messages import RegionSpec
from alcove.errors import ProtocolError


def map_memory(regions: Sequence[RegionSpec], fds: Sequence[int]) -> GuestMemory:
    """Map every region. The mappings go when nothing refers to them any more; the descriptors stay the caller's.

    Raises:
        ProtocolError: A file could shrink, or is too small for its region.
    """
    return GuestMemory([_map_region(spec, fd) for spec, fd in zip(regions, fds, strict=True)])


def _map_region(spec: RegionSpec, fd: int) -> Region:
    # the whole file up to the region's end: §3.7; a length beyond the file would fault later, so it is refused
    length = spec.mmap_offset + spec.size
    if not _sealed(fd):
        raise ProtocolError("vhost-user: the guest's memory could shrink; a sealed memfd is needed")
    if length > os.fstat(fd).st_size:
        raise ProtocolError(f"vhost-user: a memory region of {length} bytes in a smaller file")
    view = memoryview(mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
    return Region(spec.guest_address, spec.user_address, view[spec.mmap_offset :])


def _sealed(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # EINVAL: no file in memory
        return False
