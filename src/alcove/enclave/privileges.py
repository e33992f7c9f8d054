"""The supervisor gives up what it has no more use for, before the guest's first instruction can reach its devices.

1. Every capability but the one that ends QEMU, whose user is another. The bounding set goes with them.
2. No program that it could execute would give any back (no_new_privs).
3. Files: it reads its own code, and reads and writes its runtime directory and its authority; no TCP (Landlock).

It stays the user that started it: it must read certificates that are renewed while it runs, write down how the
enclave ended and remove its directory, and all these belong to that user.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
import sys
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Final

from alcove.enclave.landlock import confine
from alcove.errors import MachineError
from alcove.machine import linux

_VERSION_3: Final = 0x20080522  # linux/capability.h, two rows of effective, permitted, inheritable
_PR_CAPBSET_DROP: Final = 24  # linux/prctl.h, also below
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_AMBIENT_CLEAR_ALL: Final = 4
_LAST: Final = Path("/proc/sys/kernel/cap_last_cap")
# what Python's modules, the C library and the counts of `alcove top` are read from
_CODE: Final = ("/usr", "/lib", "/lib64", "/etc/localtime", "/etc/ld.so.cache", "/proc", "/dev/urandom")


class Capability(IntEnum):
    """Those that a supervisor may need after the start (capabilities(7))."""

    KILL = 5  # to end QEMU, and for QEMU to end with the supervisor: the signal is sent with our rights
    SYS_NICE = 23  # to pin QEMU's vCPU threads


def drop_capabilities(keep: Iterable[Capability] = ()) -> None:
    """Keep only these, of those that are there.

    Raises:
        MachineError: The kernel refused.
    """
    wanted = sum(1 << capability for capability in keep)
    try:
        for number in range(int(_LAST.read_text()) + 1):
            if not wanted >> number & 1:
                with contextlib.suppress(PermissionError):  # not ours to change, so nothing to lose either
                    linux.prctl(_PR_CAPBSET_DROP, number)
        linux.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
        _set_capabilities(wanted)
        linux.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise MachineError(f"cannot drop privileges: {error.strerror}") from error


def confine_files(*, write: Iterable[Path]) -> bool:
    """Reach only Python's own files from now on, and `write`; see :func:`alcove.enclave.landlock.confine`."""
    python = {sys.prefix, sys.base_prefix, *filter(None, sys.path)}
    try:
        return confine(read=(Path(name) for name in (*python, *_CODE)), write=(*write, Path("/dev/null")))
    except OSError as error:
        raise MachineError(f"cannot give up files: {error.strerror}") from error


def _set_capabilities(wanted: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    _checked(libc.capget(header, data))
    low, high = struct.unpack("=6I", data.raw)[1::3]  # permitted
    kept = (low | high << 32) & wanted
    row = kept & 0xFFFFFFFF, kept & 0xFFFFFFFF, 0, kept >> 32, kept >> 32, 0
    _checked(libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *row), 24)))


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "capset")
