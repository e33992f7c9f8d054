"""Runs a program and says what it cost: wall time, processor time, bytes read and written, memory of the whole tree.

Memory is the largest of

- the sum of PSS (pages, shared ones by their share: proc(5) smaps_rollup) over the program and all its descendants,
  sampled every 10 ms, and
- ru_maxrss, the kernel's own high-water mark of the largest single process, which no sampling can miss. Linux starts it
  at the size of the process that started the program (fs/exec.c), so it says nothing unless it is above our own.

The page cache of files that are read and written is not counted: it is the kernel's to take back.
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_INTERVAL = 0.01  # seconds between samples


class FailedError(Exception):
    """A program that was to be measured did not end well."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took: seconds, and bytes.

    Attributes:
        wall: From start to end.
        cpu: User and system time of the program and the descendants it waited for.
        memory: Peak of the tree as above; 0 when it was not sampled and is not above our own.
        read, written: Bytes that the program itself passed to read and write calls; 0 where the kernel does not say.
        output: What it printed.
    """

    wall: float
    cpu: float = 0.0
    memory: int = 0
    read: int = 0
    written: int = 0
    output: bytes = b""


def run(argv: Sequence[str], *, environment: Mapping[str, str] | None = None, sample: bool = False) -> Cost:
    """Run a program to its end.

    Args:
        argv: The program and its arguments.
        environment: Variables to add to this process's own.
        sample: Watch the tree's memory, which costs some processor time: not in a run that is timed.

    Raises:
        FailedError: When it exits with a status other than 0; with the last line it printed on standard error.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    sampler = Sampler([process.pid]) if sample else None
    streams: dict[str, bytes] = {}

    def read(name: str, pipe: IO[bytes] | None) -> None:
        streams[name] = pipe.read() if pipe else b""

    pipes = {"out": process.stdout, "err": process.stderr}
    readers = [threading.Thread(target=read, args=item) for item in pipes.items()]
    try:
        for reader in readers:
            reader.start()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # still a zombie: its counters can be read
        wall = time.perf_counter() - start
        io = _counters(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        peak = sampler.stop() if sampler else 0
        if process.returncode is None:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join()
        for pipe in pipes.values():
            if pipe:
                pipe.close()
    if process.returncode:
        last = streams["err"].decode(errors="replace").strip().splitlines()[-1:]
        raise FailedError(f"{' '.join(argv)} ended with status {process.returncode}: {''.join(last)}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = max(peak, usage.ru_maxrss * 1024 if usage.ru_maxrss > own else 0)
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(wall, cpu, memory, io.get("rchar", 0), io.get("wchar", 0), streams["out"])


def _counters(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}


class Sampler:
    """Watches the memory of processes and all their descendants until it is stopped."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = list(roots)
        self._peak = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._peak = max(self._peak, tree_memory(self._roots))
            self._stopped.wait(_INTERVAL)

    def stop(self) -> int:
        """End the watch; the largest sum seen, in bytes."""
        self._stopped.set()
        self._thread.join()
        return self._peak


def tree_memory(roots: Iterable[int]) -> int:
    """The sum of PSS, in bytes, over processes and all their descendants that are there now."""
    todo, total = list(roots), 0
    while todo:
        pid = todo.pop()
        try:
            total += _pss(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except OSError:  # it ended meanwhile
            continue
    return total


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
