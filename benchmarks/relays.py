"""The relays of benchmarks.proxy, each beside socat doing the same, and the servers that they lead to.

    vsock-proxy      a Unix socket → TCP                              as enclaves reach the parent's network
    egress-relay     a Unix socket, CONNECT, its list → TCP           the same, asked for by name
    publish          TCP → an enclave's socket, its handshake         as the network reaches an enclave

An enclave is registered, and its guest is left out: the server answers on its socket as the device does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alcove.devices.vsock.handshake import peer_name
from alcove.enclave import registry
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.proxy.service import take_descriptors
from alcove.types import Cid, Port
from benchmarks.net_parent import service
from benchmarks.process import FailedError

CHUNK: Final = 256 * 1024
_PORT: Final = 8000
_CID: Final = 16
_ENCLAVE: Final = "i-0123456789abcdef0-enc0123456789abcdef"
_BUFFERS: Final = 64 * 1024  # socat's -b: 8 KiB when not given, which would be no match
_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay.

    Args:
        name: Its.
        beside: The one that does the same; empty for socat's own.
        pid: Its process.
        connect: Gives a stream through it.
    """

    name: str
    beside: str
    pid: int
    connect: Callable[[], socket.socket]


@dataclass(frozen=True, slots=True)
class _Place:
    directory: Path
    environment: dict[str, str]
    tcp: int  # the server's port
    unix: Path  # the same server, without a handshake


@contextlib.contextmanager
def relays() -> Iterator[list[Relay]]:
    """All of them.

    Raises:
        FailedError: socat is missing, or one does not start.
    """
    socat = shutil.which("socat")
    if socat is None:
        raise FailedError("socat is not installed (scripts/setup --tests)")
    take_descriptors()
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(_place())
        tcp = _free_port()
        named = f"UNIX-LISTEN:{place.directory}/socat.sock,fork,backlog=1024"
        up = _socat(stack, socat, named, f"TCP:127.0.0.1:{place.tcp},nodelay")
        down = _socat(stack, socat, f"TCP-LISTEN:{tcp},fork,reuseaddr,nodelay,backlog=1024", f"UNIX:{place.unix}")
        _wait_for(lambda: _unix(place.directory / "socat.sock"))
        _wait_for(lambda: _tcp(tcp))
        yield [
            *_ours(stack, place),
            Relay("socat, Unix to TCP", "", up, lambda: _unix(place.directory / "socat.sock")),
            Relay("socat, TCP to Unix", "", down, lambda: _tcp(tcp)),
        ]


def _ours(stack: contextlib.ExitStack, place: _Place) -> Iterator[Relay]:
    file, rules = place.directory / "allow.yaml", place.directory / "rules"
    file.write_text(f"allowlist:\n- {{address: 127.0.0.1, port: {place.tcp}}}\n")
    rules.write_text(f"allow 127.0.0.1:{place.tcp}\n")
    command: tuple[object, ...] = ("vsock-proxy", "--config", file, _PORT, "127.0.0.1", place.tcp)
    proxy, _ = stack.enter_context(service(place.environment, *command, ready="enclaves reach"))
    sockets = Paths.from_environment(place.environment).run / "vsock"
    yield Relay("vsock-proxy", "socat, Unix to TCP", proxy.pid, lambda: _unix(sockets / f"{_PORT}.sock"))
    command = ("alcove", "egress-relay", "--rules", rules, "--enclave", "bench")
    relay, _ = stack.enter_context(service(place.environment, *command, ready="ask for"))
    tunnel = f"CONNECT 127.0.0.1:{place.tcp} HTTP/1.1\r\n\r\n".encode()
    yield Relay("egress-relay", "socat, Unix to TCP", relay.pid, lambda: _tunnel(sockets / "3128.sock", tunnel))
    command = ("alcove", "publish", "bench", "-p", "0:443")
    publish, line = stack.enter_context(service(place.environment, *command, ready="leads to"))
    port = int(line.split()[0].rpartition(":")[2])
    yield Relay("publish", "socat, TCP to Unix", publish.pid, lambda: _tcp(port))


@contextlib.contextmanager
def _place() -> Iterator[_Place]:
    """A runtime directory with an enclave, and a server that is reached in three ways."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="px-")))
        environment = {**os.environ, "ALCOVE_RUN": str(directory / "run")}
        paths = Paths.from_environment(environment)
        record = Record(_ENCLAVE, "bench", _CID, (0,), 64, os.getpid(), debug_mode=False)
        _, lock = registry.reserve(paths, _ENCLAVE, lambda _: record)
        stack.enter_context(lock)
        listeners = [
            socket.create_server(("127.0.0.1", 0), backlog=1024),
            socket.create_server(str(directory / "server.sock"), family=socket.AF_UNIX, backlog=1024),
            socket.create_server(str(paths.enclave(_ENCLAVE).vsock), family=socket.AF_UNIX, backlog=1024),
        ]
        for listener in listeners:
            stack.enter_context(listener)
        server = multiprocessing.get_context("fork").Process(target=_serve, args=(listeners,), daemon=True)
        server.start()
        stack.callback(server.terminate)
        yield _Place(directory, environment, listeners[0].getsockname()[1], directory / "server.sock")


def _serve(listeners: list[socket.socket]) -> None:
    plain, unix, enclave = listeners
    for listener, handshake in ((unix, False), (enclave, True)):
        threading.Thread(target=_accept, args=(listener, handshake), daemon=True).start()
    _accept(plain, handshake=False)


def _accept(listener: socket.socket, handshake: bool) -> None:
    while True:
        threading.Thread(target=_serve_one, args=(listener.accept()[0], handshake), daemon=True).start()


def _serve_one(stream: socket.socket, handshake: bool) -> None:
    """`u` takes everything, `d` and eight bytes give so many, any other byte comes back."""
    with stream, contextlib.suppress(OSError):
        if handshake:
            stream.recv(len(b"CONNECT 443\n"), socket.MSG_WAITALL)
            stream.sendall(b"OK 1\n")
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


def _unix(path: Path) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(_SECONDS)
    stream.connect(str(path))
    return stream


def _tcp(port: int) -> socket.socket:
    stream = socket.create_connection(("127.0.0.1", port), _SECONDS)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def _tunnel(path: Path, request: bytes) -> socket.socket:
    """As `alcove-enclave egress` asks, from the registered enclave."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(_SECONDS)
    stream.bind(peer_name(Cid(_CID), Port(1), os.urandom(8).hex()))
    stream.connect(str(path))
    stream.sendall(request)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += stream.recv(4096) or b"\r\n\r\n"
    if b" 200 " not in answer:
        raise FailedError(f"the relay said {answer.decode()}")
    return stream


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _socat(stack: contextlib.ExitStack, program: str, listen: str, lead: str) -> int:
    process = subprocess.Popen([program, "-b", str(_BUFFERS), "-t", "60", listen, lead])
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)
    return process.pid


def _wait_for(connect: Callable[[], socket.socket]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            connect().close()
        except OSError:
            if time.monotonic() > deadline:
                raise FailedError("socat does not listen") from None
            time.sleep(0.01)
        else:
            return
