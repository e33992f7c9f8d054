"""The machine that a benchmark ran on, so that its numbers mean something elsewhere."""

from __future__ import annotations

import os
import platform
import ssl
import subprocess
from pathlib import Path


def describe() -> dict[str, str]:
    """Processor, cores, memory, kernel, and the programs that set the limits."""
    cores, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": str(cores) if cores == usable else f"{usable} of {cores}",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) >> 20} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()} with {ssl.OPENSSL_VERSION.rsplit(' ', 3)[0]}",
        "openssl": _first_line(["openssl", "version"]),
    }


def load() -> float:
    """Processes that wanted to run, on average over the last minute."""
    return os.getloadavg()[0]


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _first_line(argv: list[str]) -> str:
    try:
        output = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return output.partition(" (")[0].strip()
