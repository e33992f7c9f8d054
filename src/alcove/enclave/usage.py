"""What a tree of processes uses, read from /proc (proc_pid_stat(5))."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds of CPU, user and system; bytes in memory, shared ones included."""

    cpu_seconds: float
    resident_bytes: int


def tree_usage(root: int) -> Usage:
    """What a process and all below it use now; a process that ends meanwhile counts nothing."""
    seconds, pages, queue = 0.0, 0, [root]
    while queue:
        process = queue.pop()
        try:
            # the name in parentheses may hold anything; what follows the last ")" begins with field 3
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        except OSError:
            continue
        seconds += (int(fields[11]) + int(fields[12])) / _TICKS  # utime, stime
        pages += int(fields[21])  # rss
        queue += [int(child) for child in children]
    return Usage(round(seconds, 2), pages * _PAGE)
