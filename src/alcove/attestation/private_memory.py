"""Keeping keys in memory out of files: no core dump, and no other process of the same user looks inside."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

from alcove.errors import MachineError

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def forbid_core_dumps() -> None:
    """For this process, from now on. A program that it executes is as it would be otherwise.

    The limit alone does not do: the kernel ignores it when cores are piped to a program (core(5)).

    Raises:
        MachineError: The kernel refused.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise MachineError(f"cannot forbid core dumps: {os.strerror(ctypes.get_errno())}")
