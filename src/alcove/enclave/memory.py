"""What an enclave's memory is made of.

Core: what was asked for and what the machine has in; a decision out. Reading /sys and limits is `isolation`'s work.

In exclusive mode nothing of it may ever be written to swap: it comes from huge pages, which are never swapped, the
largest that fit first as on AWS, or QEMU locks it. cli.md §3.3 lets the size grow to whole pages.
"""

from __future__ import annotations

from collections.abc import Mapping

from alcove.errors import MachineError
from alcove.machine.spec import GuestMemory


def plan_memory(
    memory_mib: int, *, exclusive: bool, huge_pages: Mapping[int, int], lock_obstacle: str | None
) -> tuple[int, GuestMemory]:
    """How much memory, in MiB, and of what.

    Args:
        memory_mib: What was asked for.
        exclusive: Whether it must stay in memory.
        huge_pages: Size of a page in MiB to the number of free ones.
        lock_obstacle: Why QEMU may not lock its memory, or None.

    Raises:
        MachineError: E27 in exclusive mode without enough huge pages and without the right to lock memory.
    """
    if not exclusive:
        return memory_mib, GuestMemory()
    for page, free in sorted(huge_pages.items(), reverse=True):
        whole = -(-memory_mib // page) * page
        # only the smallest rounds up: an enclave of 100 MiB is not given a page of 1 GiB
        if (whole == memory_mib or page == min(huge_pages)) and whole <= page * free:
            return whole, GuestMemory(page_mib=page)
    if lock_obstacle is None:
        return memory_mib, GuestMemory(locked=True)
    free_mib = max((page * free for page, free in huge_pages.items()), default=0)
    raise MachineError(
        f"exclusive memory: {free_mib} MiB are free in huge pages, {memory_mib} MiB are needed, and {lock_obstacle}",
        code="E27",
        hint="reserve huge pages (sysctl vm.nr_hugepages), or set `mode: shared` in allocator.yaml",
    )
