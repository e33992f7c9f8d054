"""Which CPUs and how much memory an enclave gets.

Core: a pool, what is taken and a request in; an allocation out.

Memory is counted against the pool. Of a pool that somebody set up (allocator.yaml) each CPU goes to one enclave, in
exclusive mode by whole cores; in shared mode this is accounting on paper, and the kernel schedules as it likes. Where
nobody set up a pool, enclaves share the machine's CPUs: one may have as many vCPUs as there are CPUs, and takes those
that the fewest enclaves use. Source: cli.md §3.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from alcove.enclave.cpus import Topology
from alcove.errors import MachineError, UsageError

MIN_MEMORY_MIB: Final = 64  # cli.md §3.3: the driver's minimum
MEMORY_PER_IMAGE: Final = 4  # cli.md §3.3: memory is at least four times the image
MAX_ENCLAVES: Final = 4  # cli.md §3.3
_MIB: Final = 1024 * 1024


Mode = Literal["shared", "exclusive"]


@dataclass(frozen=True, slots=True)
class Pool:
    """What enclaves may have altogether.

    Args:
        cpus: The CPUs.
        memory_mib: The memory, in MiB.
        max_enclaves: How many enclaves may run.
        mode: Whether CPUs and memory are taken from the rest of the machine, or only counted.
        why: Why this mode holds, in words.
        apart: Whether each CPU goes to one enclave only.
        topology: The machine's CPUs; needed for exclusive mode.
    """

    cpus: tuple[int, ...]
    memory_mib: int
    max_enclaves: int = MAX_ENCLAVES
    mode: Mode = "shared"
    why: str = ""
    apart: bool = False
    topology: Topology | None = None


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
    load = Counter(cpu for other in taken for cpu in other.cpu_ids)
    if not cpu_count and not cpu_ids:
        raise _refused("an enclave needs at least one CPU")
    if cpu_ids is not None:
        return _named_cpus(pool, load, cpu_ids)
    count = cpu_count or 0
    if count > len(pool.cpus):
        raise UsageError(
            f"{count} CPUs were asked for, the pool has {len(pool.cpus)}",
            code="E22",
            hint="raise `cpu_count` in allocator.yaml, or pass a smaller --cpu-count",
        )
    if not pool.apart:
        return tuple(sorted(sorted(pool.cpus, key=lambda cpu: (load[cpu], cpu))[:count]))
    free = [cpu for cpu in pool.cpus if not load[cpu]]
    if count > len(free):
        raise MachineError(
            f"the hypervisor refused a request: {count} CPUs were asked for, {len(free)} of the pool are free",
            code="E29",
            hint="end another enclave, or raise `cpu_count` in allocator.yaml",
        )
    whole = pool.topology.choose(count, free) if pool.topology else None
    if whole is None and pool.mode == "exclusive":
        raise _refused(f"{count} CPUs are not to be had in whole cores", "ask for a multiple of the threads of a core")
    return whole or tuple(sorted(free)[:count])


def _named_cpus(pool: Pool, load: Counter[int], cpu_ids: Sequence[int]) -> tuple[int, ...]:
    twice = [cpu for cpu, times in Counter(cpu_ids).items() if times > 1]
    if twice:
        raise UsageError(f"CPU(s) {twice} appear more than once in `cpu-ids`", code="E20")
    for cpu in cpu_ids:
        if cpu not in pool.cpus:
            raise UsageError(
                f"CPU {cpu} is not reserved for enclaves", code="E21", hint=f"the pool has {list(pool.cpus)}"
            )
        if pool.apart and load[cpu]:
            raise _refused(f"CPU {cpu} is another enclave's", "describe-enclaves shows who has which")
    if pool.mode == "exclusive" and pool.topology:
        whole = {cpu for core in pool.topology.whole_cores(cpu_ids) for cpu in core}
        if part := sorted(set(cpu_ids) - whole):
            raise _refused(f"CPU(s) {part} are not whole cores", "name all threads of a core")
    return tuple(cpu_ids)


def _refused(what: str, hint: str | None = None) -> UsageError:
    return UsageError(f"the hypervisor refused a request: {what}", code="E29", hint=hint)
