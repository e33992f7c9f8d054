"""Bytes through a real enclave's ways in and out, and whether any process grows by them.

An enclave runs net_inside.py. Each way in turn: into it and out of it through `alcove publish` and `alcove-enclave
ingress`; out of it and into it through `alcove-enclave egress` and `alcove egress-relay`. Bytes go over TCP on both
loopbacks, and over vsock between. `--size 10240` is ten gigabytes each way: a quarter of an hour and more under TCG.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alcove.proxy.service import take_descriptors
from benchmarks import net_parent
from benchmarks.harness import Promise, Report, at_most, main, note
from benchmarks.net_parent import BIN, SINK, SOURCE, NetEnclave, service, tcp_servers
from benchmarks.process import FailedError

MIB: Final = 1 << 20
MOST_GROWTH: Final = 16  # MiB: buffers, and nothing that follows the size


@dataclass(frozen=True, slots=True)
class World:
    """What the bytes go through, and whose memory is looked at."""

    enclave: NetEnclave
    ways: dict[str, Callable[[int], int]]
    processes: dict[str, int]

    def memory(self) -> dict[str, int]:
        """Bytes, of each process of the parent and of `alcove-enclave` inside."""
        found = {name: net_parent.resident(pid) for name, pid in self.processes.items()}
        return found | {"alcove-enclave": self.enclave.ask(op="memory")["resident"]}


@contextlib.contextmanager
def _world() -> Iterator[World]:
    directory = Path(tempfile.mkdtemp(prefix="net-"))
    environment = {**os.environ, "ALCOVE_RUN": str(directory / "run")}
    take_descriptors()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        sink, source = stack.enter_context(tcp_servers(net_parent.sink, net_parent.source))
        rules = directory / "rules"
        rules.write_text(f"allow 127.0.0.1:{sink},{source}\n")
        image, _ = net_parent.build_image(directory, rules.read_text(), b"", environment)
        started = _start(image, environment)
        stack.callback(
            subprocess.run, [BIN / "nitro-cli", "terminate-enclave", "--all"], env=environment, capture_output=True
        )
        relay, _ = stack.enter_context(
            service(environment, "alcove", "egress-relay", "--rules", rules, ready="ask for")
        )
        publish = ("alcove", "publish", "net", "-p", f"0:{SINK}")
        into, line = stack.enter_context(service(environment, *publish, ready="leads to"))
        publish = ("alcove", "publish", "net", "-p", f"0:{SOURCE}")
        out, other = stack.enter_context(service(environment, *publish, ready="leads to"))
        up, down = (int(each.split()[0].rpartition(":")[2]) for each in (line, other))
        enclave = NetEnclave(directory / "run", started)
        ways = {
            "publish, into the enclave": lambda size: net_parent.push(up, size),
            "publish, out of the enclave": lambda size: net_parent.pull(down, size),
            "egress, out of the enclave": lambda size: _bytes(enclave, "send", sink, size),
            "egress, into the enclave": lambda size: _bytes(enclave, "receive", source, size),
        }
        processes = {"supervisor": started["ProcessID"], "egress-relay": relay.pid, "publish in": into.pid}
        yield World(enclave, ways, processes | {"publish out": out.pid})


def _start(image: Path, environment: dict[str, str]) -> dict[str, Any]:
    command = [BIN / "nitro-cli", "run-enclave", "--eif-path", image, "--cpu-count", "1", "--memory", "512"]
    done = subprocess.run(
        [*command, "--enclave-name", "net"], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FailedError(f"the enclave did not start: {done.stderr.strip()[-300:]}")
    started: dict[str, Any] = json.loads(done.stdout)
    return started


def _bytes(enclave: NetEnclave, op: str, port: int, size: int) -> int:
    count: int = enclave.ask(op=op, where=f"127.0.0.1:{port}", size=size)["bytes"]
    return count


def benchmark(arguments: argparse.Namespace) -> Report:
    """Each way once; `--rounds` does not matter here."""
    size, rows, promises = arguments.size * MIB, [], list[Promise]()
    note("building an image and booting it")
    with _world() as world:
        for way in world.ways.values():  # buffers are made, code is loaded
            way(MIB)
        for name, way in world.ways.items():
            note(f"{name}: {arguments.size} MiB")
            before, began = world.memory(), time.perf_counter()
            if way(size) != size:
                raise FailedError(f"{name}: not all bytes arrived")
            seconds = time.perf_counter() - began
            grown = {each: (now - before[each]) / MIB for each, now in world.memory().items()}
            worst = max(grown, key=lambda each: grown[each])
            rows.append(
                {"case": name, "MiB": arguments.size, "s": round(seconds, 1), "MiB/s": round(size / MIB / seconds, 1),
                 "most growth, MiB": round(grown[worst], 1), "of": worst}
            )  # fmt: skip
            promises.append(at_most(f"growth of any process, MiB: {name}", grown[worst], MOST_GROWTH))
    return Report([], promises, {"bytes through": rows})


def options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="each way; 256 when not given")


if __name__ == "__main__":
    sys.exit(main("networking", __doc__ or "", benchmark, options))
