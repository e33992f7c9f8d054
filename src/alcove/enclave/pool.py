"""The pool: what allocator.yaml gives to enclaves, or what this machine has.

1. Read the file: `memory_mib`, one of `cpu_count` and `cpu_pool`, and what is ours: `max_enclaves` and `mode`.
2. Choose or check the CPUs.
3. Settle the mode. `exclusive` is an order, and an error where it cannot be had. `shared` is one too. Without either,
   a pool is exclusive where the machine can do it, and else shared with the reason why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from alcove.enclave.allocator import MAX_ENCLAVES, Mode, Pool
from alcove.enclave.config import invalid
from alcove.enclave.cpulist import parse_cpu_list
from alcove.enclave.cpus import Topology
from alcove.enclave.topology import read_topology
from alcove.errors import MachineError, UsageError

AWS_ALLOCATOR: Final = Path("/etc/nitro_enclaves/allocator.yaml")
_KEYS: Final = {"memory_mib", "cpu_count", "cpu_pool", "max_enclaves", "mode"}
_PARENT_MIB: Final = 512  # left to the parent when no file says how much enclaves may have


def load_pool(
    config: Path, *, topology: Topology | None = None, obstacle: Callable[[int], str | None] | None = None
) -> Pool:
    """The pool of ``config/allocator.yaml``, of AWS's file, or of the whole machine in shared mode.

    Args:
        config: The configuration directory.
        topology: The machine's CPUs; read when None.
        obstacle: Why a pool of so many MiB cannot be exclusive on this machine, or None; nothing stands in the way when
            no function is given.

    Raises:
        UsageError: E23 or E24 for CPUs that cannot be read, E03 for other values, E17 for unknown keys.
        MachineError: E29 for exclusive mode on a machine that cannot.
    """
    machine = topology or read_topology()
    for path in (config / "allocator.yaml", AWS_ALLOCATOR):
        if path.exists():
            return _from_file(path, machine, obstacle or (lambda _: None))
    why = "no allocator.yaml sets CPUs and memory apart"
    return Pool(machine.cpus, max(_memory_mib() - _PARENT_MIB, 0), why=why, topology=machine)


def _from_file(path: Path, machine: Topology, obstacle: Callable[[int], str | None]) -> Pool:
    raw = _read(path)
    wanted = raw.get("mode")
    if wanted not in (None, "shared", "exclusive"):
        raise invalid("mode", str(wanted), "it is `shared` or `exclusive`")
    memory_mib = _number("memory_mib", raw["memory_mib"])
    if memory_mib > _memory_mib():
        raise invalid("memory_mib", str(memory_mib), f"this machine has {_memory_mib()} MiB")
    cpus = _listed(raw["cpu_pool"], machine) if "cpu_pool" in raw else _counted(raw["cpu_count"], machine)
    mode, why = _settle(wanted, _cpu_obstacle(cpus, machine) or (wanted != "shared" and obstacle(memory_mib)) or None)
    limit = _number("max_enclaves", raw.get("max_enclaves", MAX_ENCLAVES))
    return Pool(cpus, memory_mib, limit, mode, why, apart=True, topology=machine)


def _read(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - only machines with a file pay for it

    try:
        raw: Any = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read `{path}`: {str(error).splitlines()[0]}", code="E19") from None
    if not isinstance(raw, dict) or (unknown := set(raw) - _KEYS):
        what = f"unknown key {min(map(str, unknown))!r}" if isinstance(raw, dict) else "a mapping is needed"
        raise UsageError(f"`{path}` is not in the expected format: {what}", code="E17")
    if "memory_mib" not in raw:
        raise UsageError(f"`memory_mib` is missing in `{path}`", code="E01", hint="give it in MiB")
    given = ("cpu_count" in raw) + ("cpu_pool" in raw)
    if given != 1:
        what, code = ("exclude each other", "E02") if given else ("are both missing", "E01")
        raise UsageError(f"`cpu_count` and `cpu_pool` {what}", code=code, hint=f"have one of them in {path}")
    return raw


def _listed(value: object, machine: Topology) -> tuple[int, ...]:
    cpus = tuple(parse_cpu_list(str(value)))
    if absent := sorted(set(cpus) - set(machine.cpus)):
        raise invalid("cpu_pool", str(value), f"CPU(s) {absent} are not there; this machine has {list(machine.cpus)}")
    return cpus


def _counted(value: object, machine: Topology) -> tuple[int, ...]:
    """CPUs that are not the parent's, in whole cores of one node; where there are too few, any (on paper)."""
    count = _number("cpu_count", value)
    if not 0 < count <= len(machine.cpus):
        raise invalid("cpu_count", str(count), f"this machine has {len(machine.cpus)} CPUs")
    eligible = [cpu for core in machine.eligible for cpu in core]
    return machine.choose(count, eligible) or tuple(sorted([*machine.parents, *eligible][-count:]))


def _cpu_obstacle(cpus: tuple[int, ...], machine: Topology) -> str | None:
    if common := sorted(set(cpus) & set(machine.parents)):
        return f"CPU(s) {common} stay with the parent, and {len(machine.cpus)} CPUs leave too few for this pool"
    if part := sorted(set(cpus) - {cpu for core in machine.whole_cores(cpus) for cpu in core}):
        return f"CPU(s) {part} are not whole cores"
    return None


def _settle(wanted: Mode | None, obstacle: str | None) -> tuple[Mode, str]:
    if wanted == "shared":
        return "shared", "allocator.yaml says so"
    if obstacle is None:
        return "exclusive", "allocator.yaml says so" if wanted else "the machine can keep others off this pool"
    if wanted == "exclusive":
        hint = "change the pool or the machine, or set `mode: shared` in allocator.yaml"
        raise MachineError(f"exclusive mode cannot be had: {obstacle}", code="E29", hint=hint)
    return "shared", obstacle


def _number(key: str, value: object) -> int:
    text = str(value)
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise invalid(key, text, "a whole number is needed")
    return int(text)


def _memory_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024)
