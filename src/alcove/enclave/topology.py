"""Read the machine's CPUs from /sys (Documentation/admin-guide/cputopology.rst)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from alcove.enclave.cpulist import parse_cpu_list
from alcove.enclave.cpus import Topology

_SYSTEM: Final = Path("/sys/devices/system")


def read_topology(system: Path = _SYSTEM, usable: Iterable[int] | None = None) -> Topology:
    """The cores and NUMA nodes of the CPUs that this process may use.

    Args:
        system: ``/sys/devices/system``. What is missing below it means cores of one thread, and one node.
        usable: The CPUs; those of this process when None.
    """
    cpus = frozenset(os.sched_getaffinity(0) if usable is None else usable)
    cores = {_among(cpus, system / f"cpu/cpu{cpu}/topology/thread_siblings_list") or (cpu,) for cpu in cpus}
    lists = {int(path.parent.name.removeprefix("node")): path for path in system.glob("node/node[0-9]*/cpulist")}
    nodes = {number: frozenset(_among(cpus, path)) for number, path in sorted(lists.items())}
    return Topology(tuple(sorted(cores)), nodes or {0: cpus})


def _among(cpus: frozenset[int], path: Path) -> tuple[int, ...]:
    try:
        text = path.read_text().strip()
    except OSError:
        return ()
    return tuple(cpu for cpu in parse_cpu_list(text) if cpu in cpus) if text else ()
