"""The parent's relays beside socat, which does the same: vsock-proxy, the egress relay and publish (relays.py).

- one stream: bytes to a server that takes everything, and from one that gives as many as it is asked for;
- short connections: connect, one byte there and one back, close; one after the other, and 32 at a time.

The server and the client are processes of their own and the same for all. socat makes a process for each connection.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from benchmarks.harness import Case, Promise, Report, Result, at_least, at_most, main, measure
from benchmarks.process import Cost, FailedError
from benchmarks.relays import CHUNK, Relay, relays

CONNECTIONS: Final = 1000
AT_ONCE: Final = 32
_STREAMS: Final = ("one stream up", "one stream down")
_SHORT: Final = (f"{CONNECTIONS} short, one by one", f"{CONNECTIONS} short, {AT_ONCE} at a time")


def _upload(relay: Relay, size: int) -> None:
    with relay.connect() as stream:
        stream.sendall(b"u")
        data, left = memoryview(bytes(CHUNK)), size
        while left:
            left -= stream.send(data[: min(left, CHUNK)])
        stream.shutdown(socket.SHUT_WR)
        if stream.recv(1) != b".":
            raise FailedError("the bytes did not arrive")


def _download(relay: Relay, size: int) -> None:
    with relay.connect() as stream:
        stream.sendall(b"d" + size.to_bytes(8))
        buffer, total = bytearray(CHUNK), 0
        while count := stream.recv_into(buffer):
            total += count
        if total != size:
            raise FailedError(f"{total} bytes came of {size}")


def _short(relay: Relay) -> None:
    with relay.connect() as stream:
        stream.sendall(b"x")
        if stream.recv(1) != b"x":
            raise FailedError("a short connection was not answered")


def _one_by_one(relay: Relay, _: int) -> None:
    for _number in range(CONNECTIONS):
        _short(relay)


def _many(relay: Relay, _: int) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda _number: _short(relay), range(CONNECTIONS)))


def _cpu(pid: int) -> float:
    """Processor time of a process and of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _case(relay: Relay, what: str, act: Callable[[Relay, int], None], size: int) -> Case:
    def once() -> Cost:
        cpu, began = _cpu(relay.pid), time.perf_counter()
        act(relay, size)
        return Cost(time.perf_counter() - began, _cpu(relay.pid) - cpu)

    return Case(f"{relay.name}: {what}", once, size)


def benchmark(arguments: argparse.Namespace) -> Report:
    """All relays, in turns."""
    size = arguments.size << 20
    acts = list(zip((*_STREAMS, *_SHORT), (_upload, _download, _one_by_one, _many), (size, size, 0, 0), strict=True))
    with relays() as all_of_them:
        cases = [_case(relay, what, act, much) for relay in all_of_them for what, act, much in acts]
        results = measure(cases, arguments.rounds)
        return Report(results, [promise for relay in all_of_them for promise in _promises(relay, results)])


def _promises(relay: Relay, results: Sequence[Result]) -> list[Promise]:
    """What a relay of ours promises against the socat that does the same."""
    if not relay.beside:
        return []
    by_name = {result.name: result for result in results}

    def both(what: str) -> tuple[Result, Result]:
        return by_name[f"{relay.name}: {what}"], by_name[f"{relay.beside}: {what}"]

    promises = []
    for what in _STREAMS:
        ours, theirs = both(what)
        text = f"{relay.name}: throughput against socat, {what}"
        promises.append(at_least(text, ours.throughput / theirs.throughput, 0.7))
    for what in _SHORT:
        ours, theirs = both(what)
        promises.append(at_most(f"{relay.name}: time against socat, {what}", ours.best / theirs.best, 1))
    return promises


def options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of one stream; 1024 when not given")


if __name__ == "__main__":
    sys.exit(main("proxy", __doc__ or "", benchmark, options))
