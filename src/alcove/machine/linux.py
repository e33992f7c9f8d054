"""Calls of Linux that Python's standard library has no name for, each raising OSError as the others do."""

from __future__ import annotations

import ctypes
import os
from typing import Final

CLONE_NEWNS: Final = 0x00020000  # linux/sched.h
MS_NOSUID: Final = 2  # linux/mount.h, also below
MS_NODEV: Final = 4
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """Leave namespaces shared so far (unshare(2))."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount or bind (mount(2))."""
    result = _libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, options.encode())
    _check(result, target)


def prctl(option: int, *arguments: int) -> int:
    """Change or ask for what a thread may do (prctl(2))."""
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    return _check(_libc.prctl(option, *words), "prctl")


def syscall(number: int, *arguments: object) -> int:
    """A call without a wrapper in the C library; numbers, buffers and None are passed as they are."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _check(int(_libc.syscall(ctypes.c_long(number), *words)), f"system call {number}")
