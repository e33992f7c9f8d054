"""Which CPUs and how much memory an enclave gets.

Core: a pool, what is taken and a request in; an allocation out.

In shared mode (the only one so far) CPUs are shared with the parent and the accounting is on paper: an
enclave may have as many vCPUs as the pool has CPUs, and takes those that the fewest enclaves use. Memory is
counted against the pool. Source: cli.md §3.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from alcove.errors import MachineError, UsageError

MIN_MEMORY_MIB: Final = 64  # cli.md §3.3: the driver's minimum
MEMORY_PER_IMAGE: Final = 4  # cli.md §3.3: memory is at least four times the image
MAX_ENCLAVES: Final = 4  # cli.md §3.3
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Pool:
    """What enclaves may have altogether."""

    cpus: tuple[int, ...]
    memory_mib: int
    max_enclaves: int = MAX_ENCLAVES


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one enclave has."""

    cpu_ids: tuple[int, ...]
    memory_mib: int


def required_mib(image_bytes: int) -> int:
    """The least memory for an image of this size, in MiB."""
    return max(MIN_MEMORY_MIB, -(-MEMORY_PER_IMAGE * image_bytes // _MIB))


def allocate(
    pool: Pool,
    taken: Sequence[Allocation],
    *,
    image_bytes: int,
    memory_mib: int,
    cpu_count: int | None = None,
    cpu_ids: Sequence[int] | None = None,
) -> Allocation:
    """Choose CPUs and check memory.

    Raises:
        UsageError: E20 (a CPU twice), E21 (a CPU not in the pool), E22 (too many CPUs), E26 (too little memory).
        MachineError: E27 (the pool's memory is taken), E29 (too many enclaves, or no CPU asked for).
    """
    chosen = _choose_cpus(pool, taken, cpu_count, cpu_ids)
    if memory_mib == 0:
        raise UsageError("memory must be greater than 0", code="E26", hint=f"pass --memory {required_mib(image_bytes)}")
    if memory_mib < (least := required_mib(image_bytes)):
        raise UsageError(
            f"{memory_mib} MiB is too little for this image; it needs at least {least} MiB",
            code="E26",
            hint=f"pass --memory {least}, or build a smaller image",
        )
    if len(taken) >= pool.max_enclaves:
        raise MachineError(
            f"{len(taken)} enclaves run already, and {pool.max_enclaves} is the limit",
            code="E29",
            hint="end one with terminate-enclave, or raise max_enclaves in allocator.yaml",
        )
    free = pool.memory_mib - sum(other.memory_mib for other in taken)
    if memory_mib > free:
        raise MachineError(
            f"{memory_mib} MiB were asked for and {max(free, 0)} MiB are free for enclaves",
            code="E27",
            hint="raise `memory_mib` in allocator.yaml, or end another enclave",
        )
    return Allocation(chosen, memory_mib)


def _choose_cpus(
    pool: Pool, taken: Sequence[Allocation], cpu_count: int | None, cpu_ids: Sequence[int] | None
) -> tuple[int, ...]:
    if cpu_ids is not None:
        twice = [cpu for cpu, times in Counter(cpu_ids).items() if times > 1]
        if twice:
            raise UsageError(f"CPU(s) {twice} appear more than once in `cpu-ids`", code="E20")
        for cpu in cpu_ids:
            if cpu not in pool.cpus:
                raise UsageError(
                    f"CPU {cpu} is not reserved for enclaves", code="E21", hint=f"the pool has {list(pool.cpus)}"
                )
        return tuple(cpu_ids)
    count = cpu_count or 0
    if count == 0:
        raise UsageError("the hypervisor refused a request: an enclave needs at least one CPU", code="E29")
    if count > len(pool.cpus):
        raise UsageError(
            f"{count} CPUs were asked for, the pool has {len(pool.cpus)}",
            code="E22",
            hint="raise `cpu_count` in allocator.yaml, or pass a smaller --cpu-count",
        )
    load = Counter(cpu for other in taken for cpu in other.cpu_ids)
    return tuple(sorted(sorted(pool.cpus, key=lambda cpu: (load[cpu], cpu))[:count]))
