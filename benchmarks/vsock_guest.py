"""vsock with a real guest: throughput each way and round trips, with 1, 16 and 256 streams, beside what bounds them.

An enclave with one vCPU runs vsock_load.c; this process is the parent's end. In the same run, in turns:

- the limit of throughput: the same bytes through a socket pair inside the guest's kernel, with no device at all;
- the limit of the round trip: one byte to and fro between two processes of the guest, and between two of the parent.

Times are the parent's, connects and all: a guest under TCG has no clock finer than 4 ms, and it loses ticks under load.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.harness import Promise, Report, at_least, at_most, main, note
from benchmarks.process import Cost
from benchmarks.vsock_parent import CHUNK, ECHO, LoadEnclave, running_enclave

_STREAMS: Final = (1, 16, 256)
_SIZES: Final = (CHUNK, 1)
_SMALL: Final = 20_000  # packets of one byte
_TURNS: Final = 2000
MB: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one round: seconds, of which the supervisor's processor worked so many."""

    seconds: float
    amount: int
    cost: Cost

    @property
    def rate(self) -> float:
        """Bytes or exchanges a second."""
        return self.amount / self.seconds


class Bench:
    """An enclave, and what was measured with it."""

    def __init__(self, enclave: LoadEnclave, mib: int) -> None:
        self._enclave = enclave
        self._bytes = mib << 20
        self.runs: dict[tuple[str, int, int], list[Run]] = {}

    def round(self) -> None:
        """Measure everything once."""
        self._run("local", 0, CHUNK, self._bytes)
        self._run("turn", 0, 1, _TURNS)
        for streams in _STREAMS:
            for name in ("out", "in"):
                for size in _SIZES:
                    # one byte a call is slow in the guest by itself: fewer bytes
                    self._run(name, streams, size, (self._bytes if size > 1 else _SMALL) // streams)
            self._run("ping", streams, 1, max(_TURNS // streams, 20))
        self._inwards()
        self.runs.setdefault(("host turn", 0, 1), []).append(_host_turns())

    def _run(self, name: str, streams: int, size: int, amount: int) -> None:
        before, began = _cpu(self._enclave.supervisor), time.perf_counter()
        self._enclave.command(name, streams=streams, size=size, amount=amount)
        seconds = time.perf_counter() - began
        run = Run(seconds, amount * max(streams, 1), Cost(seconds, _cpu(self._enclave.supervisor) - before))
        self.runs.setdefault((name, streams, size), []).append(run)

    def _inwards(self) -> None:
        """Round trips that the parent starts, each timed."""
        with self._enclave.connect(ECHO) as sock:
            self.runs.setdefault(("in turn", 1, 1), []).append(_turns(sock, self._enclave.supervisor))

    def best(self, name: str, streams: int, size: int) -> Run:
        """The round with the highest rate."""
        return max(self.runs[name, streams, size], key=lambda run: run.rate)


def _turns(sock: socket.socket, pid: int) -> Run:
    samples, before = [], _cpu(pid)
    for _ in range(_TURNS):
        began = time.perf_counter()
        sock.send(b"x")
        sock.recv(1)
        samples.append(time.perf_counter() - began)
    middle = statistics.median(samples)
    return Run(middle * _TURNS, _TURNS, Cost(sum(samples), _cpu(pid) - before))


def _host_turns() -> Run:
    """The same between two processes of the parent."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        while byte := theirs.recv(1):
            theirs.send(byte)
        os._exit(0)
    theirs.close()
    try:
        return _turns(ours, os.getpid())
    finally:
        ours.close()
        os.waitpid(child, 0)


def _cpu(pid: int) -> float:
    with open(f"/proc/{pid}/schedstat") as file:  # noqa: PTH123
        return int(file.read().split()[0]) / 1e9


def benchmark(arguments: argparse.Namespace) -> Report:
    """Boot one enclave and measure in rounds."""
    note("building an image and booting it")
    with running_enclave() as enclave:
        bench = Bench(enclave, arguments.size)
        for number in range(arguments.rounds):
            note(f"round {number + 1} of {arguments.rounds}")
            bench.round()
        idle = _idle(enclave.supervisor)
    tables = {"throughput": _throughput(bench), "round trips of one byte": _round_trips(bench)}
    return Report([], _promises(bench, idle), tables, [f"The supervisor, idle: {idle:.2%} of one processor."])


def _idle(pid: int) -> float:
    time.sleep(1)
    before, began = _cpu(pid), time.perf_counter()
    time.sleep(5)
    return (_cpu(pid) - before) / (time.perf_counter() - began)


def _throughput(bench: Bench) -> Sequence[dict[str, Any]]:
    limit = bench.best("local", 0, CHUNK)
    rows: list[dict[str, Any]] = [
        {"case": "limit: socket pair in the guest, 64 KiB", "MB/s": round(limit.rate / MB, 1)}
    ]
    for name, title in (("out", "guest → parent"), ("in", "parent → guest")):
        for size in _SIZES:
            for streams in _STREAMS:
                run = bench.best(name, streams, size)
                row: dict[str, Any] = {"case": title, "streams": streams, "bytes a call": size}
                row["MB/s"] = round(run.rate / MB, 1 if size > 1 else 3)
                if size > 1:
                    row["of the limit"] = round(run.rate / limit.rate, 2)
                rows.append(row | {"supervisor's cpu": f"{run.cost.cpu / run.seconds:.0%}"})
    return rows


def _round_trips(bench: Bench) -> Sequence[dict[str, Any]]:
    rows = []
    cases = [("host turn", 0, "limit: two processes of the parent"), ("turn", 0, "limit: two processes of the guest")]
    cases += [("ping", streams, "guest → parent → guest") for streams in _STREAMS]
    cases.append(("in turn", 1, "parent → guest → parent, median"))
    for name, streams, title in cases:
        run = bench.best(name, streams, 1)
        row: dict[str, Any] = {"case": title, "streams": streams or ""}
        row |= {"µs": round(1e6 / run.rate * max(streams, 1)), "a second": round(run.rate)}
        if streams:
            row["supervisor's µs"] = round(run.cost.cpu / run.amount * 1e6)
        rows.append(row)
    return rows


def _promises(bench: Bench, idle: float) -> list[Promise]:
    out, into = bench.best("out", 1, CHUNK), bench.best("in", 1, CHUNK)
    return [
        at_least("guest → parent, one stream, MB/s", out.rate / MB, 80),
        at_least("parent → guest, one stream, MB/s", into.rate / MB, 60),
        at_most("round trip that the guest starts, ms", 1e3 / bench.best("ping", 1, 1).rate, 0.6),
        at_most("round trip that the parent starts, median, ms", 1e3 / bench.best("in turn", 1, 1).rate, 0.6),
        at_most("supervisor, idle, share of a processor", idle, 0.005),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--size", type=int, default=64, metavar="MIB", help="bytes of each case; 64 when not given")


if __name__ == "__main__":
    sys.exit(main("vsock_guest", __doc__ or "", benchmark, options))
