"""Landlock: a process gives up, for good, the files and sockets that it does not need (linux/landlock.h).

It holds for root too, and on top of every other permission.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from alcove.machine import linux

_CREATE: Final = 444  # system calls; the same numbers on every architecture
_ADD_RULE: Final = 445
_RESTRICT: Final = 446
_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH: Final = 1  # LANDLOCK_RULE_PATH_BENEATH
_PR_SET_NO_NEW_PRIVS: Final = 38

_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15
_READ: Final = _READ_FILE | _READ_DIR
_OF_A_FILE: Final = _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV  # a rule on a file may have only these
# every right of files that a version knows: execute … make symlink, then refer, truncate, ioctl of devices
_FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP: Final = 0b11  # bind, connect; from version 4
_ABSTRACT_SOCKETS: Final = 0b1  # from version 6: those of processes outside


def version() -> int:
    """What the kernel offers; 0 for nothing (older than 5.13, or switched off)."""
    try:
        return linux.syscall(_CREATE, None, 0, _VERSION)
    except OSError:
        return 0


def confine(*, read: Iterable[Path], write: Iterable[Path]) -> bool:
    """From now on this thread opens only what is below these paths, no TCP, and no abstract socket of others.

    What is open stays open. Paths that do not exist are passed over. No program can be executed any more.

    Args:
        read: Files and directories to read.
        write: Files and directories to read, write, make and remove.

    Returns:
        False when the kernel cannot; nothing has changed then.

    Raises:
        OSError: The kernel refused what it says it can.
    """
    known = version()
    if not known:
        return False
    handled = _FILE_RIGHTS[min(known, max(_FILE_RIGHTS))]
    attributes = struct.pack("=QQQ", handled, _TCP if known >= 4 else 0, _ABSTRACT_SOCKETS if known >= 6 else 0)
    ruleset = linux.syscall(_CREATE, ctypes.create_string_buffer(attributes, 24), _attribute_size(known), 0)
    try:
        for paths, rights in ((read, _READ), (write, handled & ~_EXECUTE)):
            for path in paths:
                _allow(ruleset, path, rights & handled)
        linux.prctl(_PR_SET_NO_NEW_PRIVS, 1)
        linux.syscall(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return True


def _attribute_size(known: int) -> int:
    return 24 if known >= 6 else 16 if known >= 4 else 8


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not there, or not ours to enter
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_A_FILE
        rule = struct.pack("=Qi", rights, descriptor)  # struct landlock_path_beneath_attr is packed
        linux.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    finally:
        os.close(descriptor)
