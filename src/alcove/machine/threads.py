"""A machine's vCPU threads, found by the names that QEMU gives them (``-name debug-threads=on``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from alcove.errors import MachineError

_VCPU: Final = re.compile(r"CPU (\d+)/(?:KVM|TCG)")  # accel/{kvm,tcg}/*-accel-ops*.c


def vcpu_threads(process: int) -> dict[int, int]:
    """Number of each vCPU to its thread's id, for the QEMU at or below a process such as its jail."""
    return {
        int(match[1]): int(task.name)
        for below in _tree(process)
        for task in Path(f"/proc/{below}/task").glob("[0-9]*")
        if (match := _VCPU.fullmatch(_name(task)))
    }


def pin_vcpus(process: int, cpus: Sequence[int]) -> None:
    """Let vCPU n run on ``cpus[n]`` and nowhere else.

    Raises:
        MachineError: E29 when a vCPU's thread is not found, or may not be pinned.
    """
    threads = vcpu_threads(process)
    if sorted(threads) != list(range(len(cpus))):
        raise MachineError(f"QEMU shows the threads of {len(threads)} vCPUs, not {len(cpus)}", code="E29")
    for number, cpu in enumerate(cpus):
        try:
            os.sched_setaffinity(threads[number], {cpu})
        except OSError as error:
            raise MachineError(f"vCPU {number} cannot be pinned to CPU {cpu}: {error.strerror}", code="E29") from None


def _tree(process: int) -> Iterator[int]:
    queue = [process]
    while queue:
        below = queue.pop()
        yield below
        for children in Path(f"/proc/{below}/task").glob("[0-9]*/children"):
            try:
                queue += [int(child) for child in children.read_text().split()]
            except OSError:  # ended meanwhile
                continue


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text().rstrip("\n")
    except OSError:
        return ""
