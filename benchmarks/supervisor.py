"""The supervisor of a running enclave that does nothing: its memory, and its share of a processor.

Memory is the supervisor's alone, without QEMU: resident (VmRSS), which the promise is about, and its part of what it
shares with other processes (PSS). The share is what the kernel counts in user and system time over the whole wait.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.boot import Commands, hello
from benchmarks.harness import Report, at_most, main, note

MB = 1_000_000
_TICKS = os.sysconf("SC_CLK_TCK")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS  # utime, stime (proc_pid_stat(5))


def _number(pid: int, file: str, name: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def benchmark(arguments: argparse.Namespace) -> Report:
    """Start one, leave it alone, and look at it."""
    with tempfile.TemporaryDirectory(prefix="alcove-bench-") as name:
        directory = Path(name)
        commands = Commands(directory)
        started = commands.start(hello(commands, directory, arguments.eif))
        pid = started["ProcessID"]
        try:
            time.sleep(arguments.settle)
            note(f"waiting {arguments.seconds:g} s")
            before, begin = _cpu_seconds(pid), time.monotonic()
            time.sleep(arguments.seconds)
            share = (_cpu_seconds(pid) - before) / (time.monotonic() - begin)
            resident, peak = (_number(pid, "status", name) * 1024 / MB for name in ("VmRSS", "VmHWM"))
            own = _number(pid, "smaps_rollup", "Pss") * 1024 / MB
            threads = _number(pid, "status", "Threads")
        finally:
            commands.end(started)
    row = {
        "resident MB": round(resident, 1),
        "peak MB": round(peak, 1),
        "PSS MB": round(own, 1),
        "threads": threads,
        "% of a CPU": round(share * 100, 2),
    }
    promises = [at_most("resident, MB", resident, 50), at_most("idle share of a processor, %", share * 100, 0.5)]
    return Report([], promises, {f"idle for {arguments.seconds:g} s": [row]})


def options(parser: argparse.ArgumentParser) -> None:
    """Of which image, and for how long."""
    parser.add_argument("--eif", type=Path, metavar="FILE", help="the image; examples/hello is built when not given")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="how long to look; 30 when not given")
    parser.add_argument("--settle", type=float, default=5.0, metavar="S", help="before that; 5 when not given")


if __name__ == "__main__":
    sys.exit(main("supervisor", __doc__ or "", benchmark, options))
