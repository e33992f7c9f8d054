"""vsock-proxy beside socat, which does the same relay: from a Unix socket to a TCP server on the loopback.

- one stream: bytes to a server that takes everything, and from one that gives as many as it is asked for;
- short connections: connect, one byte there and one back, close; one after the other, and 32 at a time.

The server and the client are processes of their own and the same for both. socat makes a process for each connection.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import Case, Promise, Report, Result, at_least, at_most, main, measure
from benchmarks.net_parent import service
from benchmarks.process import Cost, FailedError

CHUNK: Final = 256 * 1024
CONNECTIONS: Final = 1000
AT_ONCE: Final = 32
PORT: Final = 8000
_BUFFERS: Final = 64 * 1024  # socat's -b: 8 KiB when not given, which would be no match


def _serve(listener: socket.socket) -> None:
    """The server: `u` takes everything, `d` and eight bytes give so many, any other byte comes back."""
    while True:
        threading.Thread(target=_serve_one, args=(listener.accept()[0],), daemon=True).start()


def _serve_one(stream: socket.socket) -> None:
    with stream, contextlib.suppress(OSError):
        first = stream.recv(1)
        if first == b"u":
            buffer = bytearray(CHUNK)
            while stream.recv_into(buffer):
                pass
            stream.sendall(b".")
        elif first == b"d":
            left, data = int.from_bytes(stream.recv(8, socket.MSG_WAITALL)), memoryview(bytes(CHUNK))
            while left:
                left -= stream.send(data[: min(left, CHUNK)])
        else:
            stream.sendall(first)


def _connect(path: Path) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(120)
    stream.connect(str(path))
    return stream


def _upload(path: Path, size: int) -> None:
    with _connect(path) as stream:
        stream.sendall(b"u")
        data, left = memoryview(bytes(CHUNK)), size
        while left:
            left -= stream.send(data[: min(left, CHUNK)])
        stream.shutdown(socket.SHUT_WR)
        if stream.recv(1) != b".":
            raise FailedError("the bytes did not arrive")


def _download(path: Path, size: int) -> None:
    with _connect(path) as stream:
        stream.sendall(b"d" + size.to_bytes(8))
        buffer, total = bytearray(CHUNK), 0
        while count := stream.recv_into(buffer):
            total += count
        if total != size:
            raise FailedError(f"{total} bytes came of {size}")


def _short(path: Path, _: int = 0) -> None:
    with _connect(path) as stream:
        stream.sendall(b"x")
        if stream.recv(1) != b"x":
            raise FailedError("a short connection was not answered")


def _one_by_one(path: Path) -> None:
    for _ in range(CONNECTIONS):
        _short(path)


def _many(path: Path) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda _: _short(path), range(CONNECTIONS)))


def _cpu(pid: int) -> float:
    """Processor time of a process and of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _case(name: str, pid: int, act: Callable[[], None], size: int = 0) -> Case:
    def once() -> Cost:
        cpu, began = _cpu(pid), time.perf_counter()
        act()
        return Cost(time.perf_counter() - began, _cpu(pid) - cpu)

    return Case(name, once, size)


@contextlib.contextmanager
def _relays() -> Iterator[dict[str, tuple[int, Path]]]:
    """Both, each with its process and the socket that it listens on."""
    socat = shutil.which("socat")
    if socat is None:
        raise FailedError("socat is not installed (scripts/setup --tests)")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="px-")))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        server = multiprocessing.get_context("fork").Process(target=_serve, args=(listener,), daemon=True)
        server.start()
        stack.callback(server.terminate)
        port = listener.getsockname()[1]
        file, path = directory / "allow.yaml", directory / "socat.sock"
        file.write_text(f"allowlist:\n- {{address: 127.0.0.1, port: {port}}}\n")
        environment = {**os.environ, "ALCOVE_RUN": str(directory / "run")}
        command = ("vsock-proxy", "--config", file, PORT, "127.0.0.1", port)
        ours, _ = stack.enter_context(service(environment, *command, ready="enclaves reach"))
        listen = f"UNIX-LISTEN:{path},fork,backlog=1024"
        theirs = subprocess.Popen([socat, "-b", str(_BUFFERS), "-t", "60", listen, f"TCP:127.0.0.1:{port},nodelay"])
        stack.callback(theirs.wait, 10)
        stack.callback(theirs.terminate)
        deadline = time.monotonic() + 10
        while not path.exists():
            if time.monotonic() > deadline:
                raise FailedError("socat does not listen")
            time.sleep(0.01)
        yield {"vsock-proxy": (ours.pid, directory / "run" / "vsock" / f"{PORT}.sock"), "socat": (theirs.pid, path)}


def benchmark(arguments: argparse.Namespace) -> Report:
    """Both relays, in turns."""
    size = arguments.size << 20
    with _relays() as relays:
        cases = []
        for name, (pid, path) in relays.items():
            cases += [
                _case(f"{name}: one stream up", pid, lambda path=path: _upload(path, size), size),  # type: ignore[misc]
                _case(f"{name}: one stream down", pid, lambda path=path: _download(path, size), size),  # type: ignore[misc]
                _case(f"{name}: {CONNECTIONS} short, one by one", pid, lambda path=path: _one_by_one(path)),  # type: ignore[misc]
                _case(f"{name}: {CONNECTIONS} short, {AT_ONCE} at a time", pid, lambda path=path: _many(path)),  # type: ignore[misc]
            ]
        results = measure(cases, arguments.rounds)
    return Report(results, _promises(results))


def _promises(results: Sequence[Result]) -> list[Promise]:
    by_name = {result.name: result for result in results}

    def both(what: str) -> Any:
        return by_name[f"vsock-proxy: {what}"], by_name[f"socat: {what}"]

    promises = []
    for what in ("one stream up", "one stream down"):
        ours, theirs = both(what)
        promises.append(at_least(f"throughput against socat, {what}", ours.throughput / theirs.throughput, 0.7))
    for what in (f"{CONNECTIONS} short, one by one", f"{CONNECTIONS} short, {AT_ONCE} at a time"):
        ours, theirs = both(what)
        promises.append(at_most(f"time against socat, {what}", ours.best / theirs.best, 1))
    return promises


def options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of one stream; 2048 when not given")


if __name__ == "__main__":
    sys.exit(main("proxy", __doc__ or "", benchmark, options))
