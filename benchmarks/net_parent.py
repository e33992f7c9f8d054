"""The parent's side of the networking tests and benchmarks: an enclave that runs net_inside.py, and servers for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alcove.vsock import hybrid
from benchmarks.process import FailedError

BIN: Final = Path(sys.executable).parent
CHUNK: Final = 256 * 1024
CONTROL: Final = 5000
ECHO, SINK, SOURCE, WEB = 7007, 7008, 7009, 443
_READY_SECONDS: Final = 180
_INGRESS: Final = ("443:8443", "7007", "7008", "7009")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def build_image(directory: Path, rules: str, ca: bytes, environment: Mapping[str, str]) -> tuple[Path, dict[str, str]]:
    """Build the image, with its list of rules and its authority inside.

    Returns:
        The image, and its measurements.

    Raises:
        FailedError: It could not be built.
    """
    context = directory / "net"
    context.mkdir()
    _run([BIN / "alcove", "rootfs", context / "rootfs.tar", "--with", "python", "--with", "curl"], environment)
    shutil.copy(Path(__file__).with_name("net_inside.py"), context / "app.py")
    (context / "egress.rules").write_text(rules)
    (context / "ca.pem").write_bytes(ca)
    flags = [flag for mapping in _INGRESS for flag in ("--ingress", mapping)]
    command = ["/usr/bin/alcove-enclave", "run", "--egress", "--dns", *flags, "--"]
    (context / "Dockerfile").write_text(
        "FROM scratch\nADD rootfs.tar /\nCOPY egress.rules /etc/alcove/egress.rules\nCOPY ca.pem app.py /app/\n"
        f"CMD {json.dumps([*command, '/usr/bin/python3', '-I', '/app/app.py'])}\n"
    )
    target = directory / "net.eif"
    arguments = ["build-enclave", "--docker-dir", context, "--docker-uri", "net:test", "--output-file", target]
    built = json.loads(_run([BIN / "nitro-cli", *arguments], environment))
    shutil.rmtree(context)
    return target, built["Measurements"]


def _run(command: Sequence[object], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        list(map(str, command)), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise FailedError(f"{command[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class NetEnclave:
    """An enclave that runs net_inside.py.

    Args:
        run: The runtime directory.
        started: What run-enclave printed.
    """

    run: Path
    started: dict[str, Any]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Let the application do something.

        Raises:
            FailedError: It could not.
        """
        path = self.run / "enclaves" / self.started["EnclaveID"] / "vsock.sock"
        deadline = time.monotonic() + _READY_SECONDS
        while (stream := _connect(path)) is None:
            if time.monotonic() > deadline:
                raise FailedError("the application in the enclave does not listen")
            time.sleep(0.5)  # it starts for seconds under emulation
        with stream, stream.makefile("rb") as lines:
            stream.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(lines.readline())
        if "error" in answer:
            raise FailedError(f"in the enclave: {answer['error']}")
        return answer


def _connect(path: Path) -> socket.socket | None:
    """A stream to the control port; None as long as nothing listens there."""
    try:
        return hybrid.connect(path, CONTROL)
    except ConnectionError:
        return None


@contextlib.contextmanager
def service(
    environment: Mapping[str, str], *command: object, ready: str, log: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """One of our programs, once it has said that it is ready; and the line that said so.

    Raises:
        FailedError: It ended first.
    """
    path = log or Path(os.devnull)
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [str(BIN / str(command[0])), *map(str, command[1:])], env=environment, stdin=subprocess.DEVNULL, stderr=writing
    )
    os.close(writing)
    said = os.fdopen(reading, errors="replace")

    def keep() -> None:
        with path.open("a") as file:
            for line in said:
                file.write(line)
                file.flush()

    try:
        line = said.readline()
        if ready not in line:
            raise FailedError(f"{command[0]} said: {line}")
        reader = threading.Thread(target=keep, daemon=True)
        reader.start()
        yield process, line
    finally:
        process.terminate()
        process.wait(30)
        said.close() if "reader" not in locals() else reader.join(10)


@contextlib.contextmanager
def tcp_servers(*handlers: Handler) -> Iterator[list[int]]:
    """Servers on the loopback, in a thread with a loop of their own; yields their ports."""
    loop, ports = asyncio.new_event_loop(), []
    for handler in handlers:
        starting = asyncio.start_server(_until_cancelled(handler), "127.0.0.1", 0, limit=CHUNK, backlog=1024)
        server = loop.run_until_complete(starting)
        ports.append(server.sockets[0].getsockname()[1])
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield ports
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()


def _until_cancelled(handler: Handler) -> Handler:
    """Asyncio of Python 3.11 complains about each handler that is cancelled with its stream open."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await handler(reader, writer)

    return handle


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()


async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take everything, and say how many bytes it were."""
    total = 0
    while data := await reader.read(CHUNK):
        total += len(data)
    writer.write(b"%d\n" % total)
    writer.close()


async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a number and a line feed, and give so many bytes."""
    left, data = int(await reader.readline()), bytes(CHUNK)
    while left:
        writer.write(data[:left])
        await writer.drain()
        left -= min(left, CHUNK)
    writer.close()


def push(port: int, size: int) -> int:
    """Send so many bytes to a sink behind a port of the loopback; what it says it got."""
    with socket.create_connection(("127.0.0.1", port), 600) as stream:
        data, left = bytes(CHUNK), size
        while left:
            stream.sendall(data[:left])
            left -= min(left, CHUNK)
        stream.shutdown(socket.SHUT_WR)
        return int(stream.makefile("rb").readline())


def pull(port: int, size: int) -> int:
    """Take so many bytes from a source behind a port of the loopback; how many came."""
    with socket.create_connection(("127.0.0.1", port), 600) as stream:
        stream.sendall(b"%d\n" % size)
        buffer, total = bytearray(CHUNK), 0
        while count := stream.recv_into(buffer):
            total += count
        return total


async def crowd(port: int, count: int) -> int:
    """So many connections to an echo server behind a port of the loopback, all asked for and open at once.

    Returns:
        How many gave back their own lines.
    """

    async def one(number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"%d\n" % number)
        if await reader.readline() != b"%d\n" % number:
            raise FailedError(f"connection {number} of {count} ended")
        return reader, writer

    streams = await asyncio.gather(*map(one, range(count)))
    lines = [str(number).encode() * 200 + b"\n" for number in range(count)]
    for (_, writer), line in zip(streams, lines, strict=True):
        writer.write(line)
    came = await asyncio.gather(*(reader.readline() for reader, _ in streams))
    for _, writer in streams:
        writer.close()
    return sum(line == other for line, other in zip(lines, came, strict=True))


def resident(pid: int) -> int:
    """Bytes of a process that are in memory and its own (Linux's RssAnon)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
