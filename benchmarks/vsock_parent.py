"""The parent's side of the vsock benchmarks: peers for the streams of vsock_load.c, and an enclave that runs it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.process import FailedError

SOURCE: Final = Path(__file__).parent / "vsock_load.c"
COMMANDS: Final = 7000
ECHO: Final = 7001
_READY_SECONDS: Final = 20
CHUNK: Final = 64 * 1024
_PERIOD: Final = 256 * 251
_PATTERN: Final = bytes((n * 7 + n // 251) & 0xFF for n in range(_PERIOD)) * 3
_FLAGS: Final = ("-std=gnu17", "-static", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=all")
_DOCKERFILE: Final = 'FROM scratch\nCOPY --chmod=0755 load /load\nCMD ["/load"]\n'


def pattern(start: int, length: int) -> bytes:
    """Bytes `start` and on of every stream; at most 64 KiB of them."""
    return _PATTERN[start % _PERIOD : start % _PERIOD + length]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command of vsock_load took: seconds and bytes; median and 99th percentile of single exchanges."""

    seconds: float
    count: int
    median: float
    slow: float


def compile_load(target: Path) -> None:
    """Make the program that runs in the enclave, with the pinned compiler.

    Raises:
        FailedError: The compiler is missing or refused.
    """
    machine = os.uname().machine
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl", *_FLAGS]
    done = subprocess.run([*command, "-o", str(target), str(SOURCE)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedError(f"the load program was not compiled: {done.stderr.strip()[-200:]}")


def build_load_image(directory: Path, environment: dict[str, str]) -> Path:
    """An image whose application is vsock_load.

    Raises:
        FailedError: It could not be built.
    """
    context = directory / "load"
    context.mkdir()
    compile_load(context / "load")
    (context / "Dockerfile").write_text(_DOCKERFILE)
    target = directory / "load.eif"
    _nitro_cli(
        environment, "build-enclave", "--docker-dir", context, "--docker-uri", "load:bench", "--output-file", target
    )
    return target


def _nitro_cli(environment: dict[str, str], *arguments: object) -> Any:
    program = str(Path(sys.executable).parent / "nitro-cli")
    done = subprocess.run(
        [program, *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode:
        raise FailedError(f"nitro-cli {arguments[0]}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)


@contextlib.contextmanager
def running_enclave() -> Iterator[LoadEnclave]:
    """An enclave that runs vsock_load, in a runtime directory of its own.

    Raises:
        FailedError: It did not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="vs-"))
    environment = os.environ | {"ALCOVE_RUN": str(directory / "run")}
    try:
        image = build_load_image(directory, environment)
        started = _nitro_cli(
            environment, "run-enclave", "--eif-path", image, "--cpu-count", 1, "--memory", 256, "--debug-mode"
        )
        try:
            yield LoadEnclave(directory / "run", started)
        finally:
            _nitro_cli(environment, "terminate-enclave", "--enclave-id", started["EnclaveID"])
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class LoadEnclave:
    """An enclave that runs vsock_load.

    Args:
        run: The runtime directory.
        started: What run-enclave printed.
    """

    def __init__(self, run: Path, started: dict[str, Any]) -> None:
        self.run = run
        self.supervisor: int = started["ProcessID"]
        self._socket = run / "enclaves" / started["EnclaveID"] / "vsock.sock"

    def connect(self, port: int) -> socket.socket:
        """A stream to a port of the enclave, through the hybrid socket.

        Raises:
            FailedError: The enclave did not accept.
        """
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(120)
            sock.connect(str(self._socket))
            sock.sendall(b"CONNECT %d\n" % port)
            if _line(sock).startswith("OK "):
                return sock
            sock.close()
            if time.monotonic() > deadline:
                raise FailedError(f"the enclave refused port {port}")
            time.sleep(0.1)  # the application starts after the heartbeat

    def listen(self, port: int) -> socket.socket:
        """A listener that the enclave reaches at the parent's `port`."""
        path = self.run / "vsock" / f"{port}.sock"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(512)
        return listener

    def command(self, name: str, *, streams: int = 0, size: int, amount: int) -> Answer:
        """Let vsock_load do something, with the peers that it needs (see vsock_load.c).

        Raises:
            FailedError: It did not end well.
        """
        port = 9100
        with contextlib.ExitStack() as stack:
            if streams:
                listener = stack.enter_context(self.listen(port))
                peer = threading.Thread(target=_PEERS[name], args=(listener, streams, size, amount), daemon=True)
                peer.start()
            answer = self.ask(name, port, streams, size, amount)
            if streams:
                peer.join(10)
        return answer

    def ask(self, name: str, port: int, streams: int, size: int, amount: int) -> Answer:
        """Send one command and read its answer; errors as in :meth:`command`."""
        with self.connect(COMMANDS) as control:
            control.sendall(f"{name} {port} {streams} {size} {amount}\n".encode())
            fields = _line(control).split()
        if len(fields) != 4:
            raise FailedError(f"vsock_load did not finish `{name}`")
        nanoseconds, count, median, slow = map(int, fields)
        return Answer(nanoseconds / 1e9, count, median / 1e9, slow / 1e9)


def _line(sock: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            break
        line += byte
    return line.decode()


def _accept(listener: socket.socket, streams: int) -> list[socket.socket]:
    return [listener.accept()[0] for _ in range(streams)]


def _drain(listener: socket.socket, streams: int, _size: int, _amount: int) -> None:
    """Read every stream to its end, then end too."""
    into = bytearray(4 * CHUNK)
    _each(_accept(listener, streams), selectors.EVENT_READ, lambda sock: not sock.recv_into(into))


def _fill(listener: socket.socket, streams: int, _size: int, amount: int) -> None:
    """Write so many bytes on every stream, then end."""
    sent: dict[socket.socket, int] = dict.fromkeys(_accept(listener, streams), 0)
    data = memoryview(_PATTERN)

    def write(sock: socket.socket) -> bool:
        at = sent[sock]
        sent[sock] += sock.send(data[at % _PERIOD : at % _PERIOD + min(CHUNK, amount - at)])
        return sent[sock] == amount

    _each(list(sent), selectors.EVENT_WRITE, write)


def _echo(listener: socket.socket, streams: int, _size: int, _amount: int) -> None:
    """Give back what comes."""

    def back(sock: socket.socket) -> bool:
        data = sock.recv(CHUNK)
        if data:
            sock.sendall(data)
        return not data

    _each(_accept(listener, streams), selectors.EVENT_READ, back)


def _each(socks: list[socket.socket], events: int, act: Callable[[socket.socket], bool]) -> None:
    """Call `act` for every socket that is ready, until it has said for each that it is done."""
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, events)
        while selector.get_map():
            for key, _ in selector.select():
                sock = key.fileobj  # type: ignore[assignment]
                with contextlib.suppress(BlockingIOError):
                    if act(sock):
                        selector.unregister(sock)
                        sock.close()


_PEERS: Final = {"out": _drain, "in": _fill, "ping": _echo}
