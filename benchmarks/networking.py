"""Bytes through a real enclave's ways in and out, and whether any process grows by them.

An enclave runs net_inside.py. Each way in turn: into it and out of it through `alcove publish` and `alcove-enclave
ingress`; out of it and into it through `alcove-enclave egress` and `alcove egress-relay`. Bytes go over TCP on both
loopbacks, and over vsock between. Memory is looked at all the while: of each process of the parent, of `alcove-enclave`
inside, and of the enclave's machine as a whole. `--size 10240` is ten gigabytes each way: many minutes under TCG.
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
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alcove.enclave import control
from alcove.enclave.paths import EnclavePaths
from alcove.proxy.service import take_descriptors
from benchmarks import net_parent
from benchmarks.harness import Promise, Report, at_most, main, note
from benchmarks.net_parent import BIN, SINK, SOURCE, NetEnclave, service, tcp_servers
from benchmarks.process import FailedError

MIB: Final = 1 << 20
MOST_GROWTH: Final = 16  # MiB: buffers, and nothing that follows the size
WARM: Final = 16 * MIB  # bytes each way first: buffers are made, code is loaded
LOOK_SECONDS: Final = 1.0
LOOKS: Final = 15  # so many at the parent's processes for each one into the enclave
LOOKS_A_LINE: Final = 30


@dataclass(frozen=True, slots=True)
class World:
    """What the bytes go through, and whose memory is looked at."""

    enclave: NetEnclave
    ways: dict[str, Callable[[int], int]]
    processes: dict[str, int]

    def parents(self) -> dict[str, int]:
        """Bytes of each process of the parent."""
        return {name: net_parent.resident(pid) for name, pid in self.processes.items()}

    def memory(self) -> dict[str, int]:
        """Bytes of each process of the parent, of `alcove-enclave` inside, and of the whole machine inside."""
        inside = self.enclave.ask(op="memory")
        return self.parents() | {"alcove-enclave": inside["resident"], "the enclave's machine": inside["used"]}

    def carried(self) -> int:
        """Bytes that vsock has carried, both ways."""
        directory = EnclavePaths(self.enclave.run / "enclaves" / self.enclave.started["EnclaveID"])
        stats = control.ask(directory.control, "stats")
        carried: int = stats["BytesFromEnclave"] + stats["BytesToEnclave"]
        return carried


class Watch:
    """Looks at memory all the while, and says how far it is."""

    def __init__(self, world: World, name: str, size: int) -> None:
        self._world = world
        self._name = name
        self._size = size
        self._before = world.memory()
        self._at, self._began = world.carried(), time.perf_counter()
        self._most = dict(self._before)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        looks = 0
        while not self._stopped.wait(LOOK_SECONDS):
            looks += 1
            self._look(self._world.parents() if looks % LOOKS else self._world.memory())
            if looks % LOOKS_A_LINE == 0:
                done = (self._world.carried() - self._at) / MIB
                speed = done / (time.perf_counter() - self._began)
                note(f"{self._name}: {done:.0f} of {self._size // MIB} MiB, {speed:.1f} MiB/s")

    def _look(self, found: dict[str, int]) -> None:
        for name, now in found.items():
            self._most[name] = max(self._most[name], now)

    def stop(self) -> dict[str, float]:
        """Look no more; the most that each has grown, in MiB."""
        self._stopped.set()
        self._thread.join()
        self._look(self._world.memory())
        return {name: (self._most[name] - before) / MIB for name, before in self._before.items()}


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
        enclave.ask(op="memory")  # its programs listen
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
    rows, growth, promises = list[dict[str, Any]](), list[dict[str, Any]](), list[Promise]()
    note("building an image and booting it")
    with _world() as world:
        for way in world.ways.values():
            way(WARM)
        for name, way in world.ways.items():
            note(f"{name}: {arguments.size} MiB")
            seconds, grown = _through(world, name, way, arguments.size * MIB)
            speed = round(arguments.size / seconds, 1)
            rows.append({"case": name, "MiB": arguments.size, "s": round(seconds, 1), "MiB/s": speed})
            growth.append({"case": name} | {each: round(most, 1) for each, most in grown.items()})
            promises.append(at_most(f"growth of anything, MiB: {name}", max(grown.values()), MOST_GROWTH))
    return Report([], promises, {"bytes through": rows, "most growth, MiB": growth})


def _through(world: World, name: str, way: Callable[[int], int], size: int) -> tuple[float, dict[str, float]]:
    """So many bytes one way: seconds, and the most that each has grown."""
    watch, began = Watch(world, name, size), time.perf_counter()
    try:
        came = way(size)
        seconds = time.perf_counter() - began
    finally:
        grown = watch.stop()
    if came != size:
        raise FailedError(f"{name}: not all bytes arrived")
    return seconds, grown


def options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="each way; 256 when not given")


if __name__ == "__main__":
    sys.exit(main("networking", __doc__ or "", benchmark, options))
