"""Which CPUs belong together, and which of them enclaves may have.

Core: a machine's topology in, sets of CPUs out; reading /sys is `topology`'s work.

CPU 0 and the other threads of its core stay with the parent. Enclaves have whole cores, so that no thread of the
parent or of another enclave shares a core's caches with them, and CPUs of one NUMA node where that can be. Source:
cli.md §3.3 and §3.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Core = tuple[int, ...]
"""The CPUs (hardware threads) of one core, in order."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The CPUs that are on line: each core's threads, and each NUMA node's CPUs by its number."""

    cores: tuple[Core, ...]
    nodes: Mapping[int, frozenset[int]]

    @property
    def cpus(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(sorted(cpu for core in self.cores for cpu in core))

    @property
    def parents(self) -> Core:
        """The core that the parent keeps: that of CPU 0, or of the first one on line."""
        return min(self.cores, default=())

    @property
    def eligible(self) -> tuple[Core, ...]:
        """The cores that enclaves may have."""
        return tuple(sorted(core for core in self.cores if core != self.parents))

    def node_of(self, cpus: Iterable[int]) -> int | None:
        """The number of the one node that holds all these CPUs, or None; None too where there is but one."""
        wanted = set(cpus)
        found = (number for number, node in self.nodes.items() if wanted <= node)
        return next(found, None) if len(self.nodes) > 1 else None

    def whole_cores(self, cpus: Iterable[int]) -> tuple[Core, ...]:
        """The cores of which every thread is among these CPUs."""
        given = set(cpus)
        return tuple(core for core in sorted(self.cores) if set(core) <= given)

    def choose(self, count: int, free: Iterable[int]) -> tuple[int, ...] | None:
        """Whole free cores with `count` threads together.

        Of the nodes that have enough, the one with the fewest left over; across nodes when none has.

        Returns:
            The CPUs in order, or None when `count` threads are not to be had in whole cores.
        """
        cores = self.whole_cores(free)
        groups = [[core for core in cores if set(core) <= node] for node in self.nodes.values()]
        groups = [group for group in groups if sum(map(len, group)) >= count]
        for group in (*sorted(groups, key=lambda group: sum(map(len, group))), cores):
            if chosen := _fill(group, count):
                return chosen
        return None


def _fill(cores: Iterable[Core], count: int) -> tuple[int, ...] | None:
    """Cores of exactly `count` threads together, the largest first; they differ in size only on odd machines."""
    chosen: list[int] = []
    for core in sorted(cores, key=lambda core: (-len(core), core)):
        if len(chosen) + len(core) <= count:
            chosen += core
    return tuple(sorted(chosen)) if count and len(chosen) == count else None
