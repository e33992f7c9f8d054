"""Read the pool: allocator.yaml, or what this machine has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from alcove.enclave.allocator import MAX_ENCLAVES, Pool
from alcove.enclave.config import invalid
from alcove.errors import UsageError

AWS_ALLOCATOR: Final = Path("/etc/nitro_enclaves/allocator.yaml")
_KEYS: Final = {"memory_mib", "cpu_count", "cpu_pool", "max_enclaves"}
_PARENT_MIB: Final = 512  # left to the parent when no file says how much enclaves may have


def load_pool(config: Path) -> Pool:
    """The pool of ``config/allocator.yaml``, of AWS's file, or of the whole machine in shared mode.

    Raises:
        UsageError: E23 or E24 for CPUs that cannot be read, E03 for other values, E17 for unknown keys.
    """
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    for path in (config / "allocator.yaml", AWS_ALLOCATOR):
        if path.exists():
            return _from_file(path, cpus)
    return Pool(cpus, max(_memory_mib() - _PARENT_MIB, 0))


def _from_file(path: Path, cpus: tuple[int, ...]) -> Pool:
    import yaml  # noqa: PLC0415 - only machines with a file pay for it

    try:
        raw: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read `{path}`: {str(error).splitlines()[0]}", code="E19") from None
    if not isinstance(raw, dict) or (unknown := set(raw) - _KEYS):
        what = f"unknown key {min(map(str, unknown))!r}" if isinstance(raw, dict) else "a mapping is needed"
        raise UsageError(f"`{path}` is not in the expected format: {what}", code="E17")
    if ("cpu_count" in raw) == ("cpu_pool" in raw):
        raise UsageError(
            "`cpu_count` and `cpu_pool` exclude each other", code="E02", hint=f"keep one of them in {path}"
        )
    if "cpu_pool" in raw:
        chosen = tuple(parse_cpu_list(str(raw["cpu_pool"])))
    else:
        count = _number("cpu_count", raw["cpu_count"])
        if count > len(cpus):
            raise invalid("cpu_count", str(count), f"this machine has {len(cpus)} CPUs")
        chosen = cpus[-count:] if count else ()
    return Pool(
        chosen,
        _number("memory_mib", raw.get("memory_mib")),
        _number("max_enclaves", raw.get("max_enclaves", MAX_ENCLAVES)),
    )


def _number(key: str, value: object) -> int:
    text = str(value)
    if not text.isdigit():
        raise invalid(key, text, "a whole number is needed")
    return int(text)


def parse_cpu_list(text: str) -> list[int]:
    """CPU numbers from the kernel's list form, such as ``2,3,6-9``.

    Raises:
        UsageError: E23 for what is no number, E24 for a range that cannot be read.
    """
    cpus: set[int] = set()
    for part in text.replace(" ", "").split(","):
        ends = part.split("-")
        if len(ends) > 2:
            raise UsageError(f"the CPU pool contains a range that cannot be read: {part!r}", code="E24")
        if not all(end.isdigit() and int(end) < 4096 for end in ends):
            raise UsageError(f"the CPU pool contains something that is not a CPU number: {part!r}", code="E23")
        cpus.update(range(int(ends[0]), int(ends[-1]) + 1))
    return sorted(cpus)


def _memory_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024)
