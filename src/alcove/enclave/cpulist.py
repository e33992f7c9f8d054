"""The kernel's list form of CPU numbers.

Core: text in, numbers out.
"""

from __future__ import annotations

from typing import Final

from alcove.errors import UsageError

_MAX_CPU: Final = 8192  # CONFIG_NR_CPUS is not above it


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
        if not all(end.isascii() and end.isdigit() and int(end) < _MAX_CPU for end in ends):
            raise UsageError(f"the CPU pool contains something that is not a CPU number: {part!r}", code="E23")
        if int(ends[-1]) < int(ends[0]):
            raise UsageError(f"the CPU pool contains a range that ends before it begins: {part!r}", code="E24")
        cpus.update(range(int(ends[0]), int(ends[-1]) + 1))
    return sorted(cpus)
