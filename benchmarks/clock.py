"""An enclave's clock against its parent's, for ten minutes: kept by our init, and left to itself.

Two enclaves run the same image at the same time. One finds the parent's time service, as every enclave does; the
other's is taken away before its kernel has come to init, so that its clock is what QEMU and the kernel make of it. Both
are asked what time it is every few seconds; the quickest of several answers counts, half its round trip is the doubt.

The drift is the slope of a straight line through the offsets, in millionths.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.boot import Commands
from benchmarks.harness import Report, at_most, main, note
from benchmarks.process import FailedError
from benchmarks.vsock_parent import COMMANDS, LoadEnclave, build_load_image

LIMIT_MS: Final = 100.0
_TIME_SOCKET: Final = "vsock.sock_9037"
_ANSWERS: Final = 5
_READY_SECONDS: Final = 0.05  # for the enclave's server to have a process at the other end
_BOOT_SECONDS: Final = 120.0


@dataclass(slots=True)
class Track:
    """What one clock said: seconds since the first look, offset from the parent's in ms, and the doubt in ms."""

    name: str
    rows: list[tuple[float, float, float]] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """What the report says of it."""
        offsets = [offset for _, offset, _ in self.rows]
        return {
            "clock": self.name,
            "first ms": round(offsets[0], 1),
            "last ms": round(offsets[-1], 1),
            "least ms": round(min(offsets), 1),
            "most ms": round(max(offsets), 1),
            "drift ppm": round(slope([(at, offset * 1000) for at, offset, _ in self.rows]), 1),
            "doubt ms": round(max(doubt for *_, doubt in self.rows), 2),
        }

    @property
    def worst(self) -> float:
        """The largest error, in ms."""
        return max(abs(offset) for _, offset, _ in self.rows)


def slope(points: list[tuple[float, float]]) -> float:
    """Of the straight line with the least squares through points; 0 for one point."""
    middle = sum(x for x, _ in points) / len(points)
    below = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * y for x, y in points) / below if below else 0.0


def offset_ms(enclave: LoadEnclave) -> tuple[float, float]:
    """How far the enclave's clock is ahead of ours, and how far off that can be, both in ms."""
    return min((_ask(enclave) for _ in range(_ANSWERS)), key=lambda answer: answer[1])


def _ask(enclave: LoadEnclave) -> tuple[float, float]:
    with enclave.connect(COMMANDS) as control:
        time.sleep(_READY_SECONDS)
        before = time.time_ns()
        control.sendall(b"clock 0 0 1 0\n")
        line = control.makefile().readline()
        after = time.time_ns()
    if not line:
        raise FailedError("vsock_load did not tell the time")
    return (int(line.split()[0]) - (before + after) / 2) / 1e6, (after - before) / 2e6


@contextlib.contextmanager
def _both(directory: Path) -> Iterator[tuple[LoadEnclave, LoadEnclave]]:
    """An enclave whose clock is kept, and one whose is not."""
    commands, run = Commands(directory), directory / "run"
    image = build_load_image(directory, commands.environment)
    with contextlib.ExitStack() as stack:

        def running(started: dict[str, Any]) -> LoadEnclave:
            stack.callback(commands.end, started)
            return LoadEnclave(run, started)

        kept = running(commands.start(image))
        before = set(run.glob(f"enclaves/*/{_TIME_SOCKET}"))
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(commands.start, image)
            deadline = time.monotonic() + _BOOT_SECONDS
            while not (new := set(run.glob(f"enclaves/*/{_TIME_SOCKET}")) - before) and time.monotonic() < deadline:
                time.sleep(0.005)
            for socket in new:
                socket.unlink()
            left = running(starting.result())
        yield kept, left


def benchmark(arguments: argparse.Namespace) -> Report:
    """Look at both, again and again."""
    kept, left = Track("kept by init"), Track("left to itself")
    with tempfile.TemporaryDirectory(prefix="alcove-clock-") as name, _both(Path(name)) as enclaves:
        begin = time.monotonic()
        while (at := time.monotonic() - begin) <= arguments.minutes * 60:
            for track, enclave in zip((kept, left), enclaves, strict=True):
                track.rows.append((at, *offset_ms(enclave)))
            if len(kept.rows) % 10 == 1:
                note(f"{at:.0f} s: kept {kept.rows[-1][1]:.1f} ms, left {left.rows[-1][1]:.1f} ms")
            time.sleep(arguments.every)
    return Report(
        [],
        [at_most("error of the clock that is kept, at any time, ms", kept.worst, LIMIT_MS)],
        {f"{arguments.minutes:g} minutes, {len(kept.rows)} looks": [kept.row(), left.row()]},
    )


def options(parser: argparse.ArgumentParser) -> None:
    """For how long, and how often."""
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="10 when not given")
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between looks; 5 when not given")


if __name__ == "__main__":
    sys.exit(main("clock", __doc__ or "", benchmark, options))
