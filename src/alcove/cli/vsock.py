"""Alcove's own commands to talk to enclaves: ``exec``, ``connect``, ``forward`` and ``publish``."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
from pathlib import Path
from typing import Any, Final, NoReturn

from alcove.cli import output
from alcove.cli.parsers import Commands, command
from alcove.enclave import registry, runtime
from alcove.enclave.config import parse_number
from alcove.enclave.paths import Paths
from alcove.errors import MachineError, UsageError
from alcove.types import Port

_EXEC: Final = """\
run a program whose AF_VSOCK sockets reach the enclaves by their CIDs

The program sees the enclaves' CIDs and is CID 3 itself, whether or not this host has vsock: connect() reaches an
enclave's port, and the ports that it binds are reached by the enclaves. Its children inherit it.

Programs that do not load the C library are not covered: static binaries, and most written in Go. Neither are
datagram and seqpacket sockets, which enclaves do not have."""
_FORWARD: Final = """\
pass the enclaves' connections to a port on to a program that listens there with the kernel's own AF_VSOCK

The kernel needs vsock's loopback (modprobe vsock_loopback). A program that `alcove exec` can start needs neither."""
_PUBLISH: Final = """\
lead TCP ports of this machine to an enclave's vsock ports, until a signal ends it

TLS ends where the server is: in the enclave. A server that listens on TCP needs `alcove-enclave ingress` beside it.
The enclave is looked up for every connection: one that is started again under the same name is reached again."""
_LONGEST_WAIT: Final = 86400.0


def add_commands(commands: Commands) -> None:
    """Add ``exec``, ``connect``, ``forward`` and ``publish``."""
    parser = command(
        commands, "exec", execute, "run a program that speaks AF_VSOCK", "alcove exec -- socat - VSOCK-CONNECT:16:5000"
    )
    parser.description = _EXEC
    parser.add_argument("program", metavar="PROGRAM", help="its name or path")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="its own")
    example = "echo hello | alcove connect 16 5000 --wait 10"
    parser = command(commands, "connect", connect, "connect standard input and output to an enclave's port", example)
    parser.add_argument("enclave", metavar="CID", help="the enclave's CID, name or id")
    parser.add_argument("port", metavar="PORT", help="that the application listens on")
    parser.add_argument(
        "--wait", metavar="SECONDS", type=_seconds, default=0.0, help="try that long while the enclave boots"
    )
    parser = command(commands, "forward", forward, "let enclaves reach a server on AF_VSOCK", "alcove forward 8000")
    parser.description = _FORWARD
    parser.add_argument("port", metavar="PORT", help="that enclaves connect to, and the server listens on")
    parser.add_argument("--cid", metavar="CID", help="where it listens; the loopback's 1 by default")
    example = "alcove publish web -p 8443:443"
    parser = command(
        commands, "publish", publish, "lead a TCP port of this machine to an enclave's vsock port", example
    )
    parser.description = _PUBLISH
    parser.add_argument("enclave", metavar="ENCLAVE", help="the enclave's CID, name or id")
    parser.add_argument(
        "-p",
        "--port",
        action="append",
        required=True,
        dest="ports",
        metavar="[ADDRESS:]HOSTPORT[:PORT]",
        help="where to listen, on 127.0.0.1 unless an address says otherwise, and the enclave's port",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= _LONGEST_WAIT:
        raise argparse.ArgumentTypeError(f"from 0 to {_LONGEST_WAIT:.0f}")
    return value


def execute(arguments: argparse.Namespace) -> NoReturn:
    """``exec``: become the program."""
    from alcove import hostvsock  # noqa: PLC0415 - only this command needs it

    paths = Paths.from_environment()
    runtime.prepare(paths)
    words = arguments.arguments
    program = shutil.which(arguments.program)
    if program is None:
        raise UsageError(f"there is no program `{arguments.program}`", hint="give its path, or look at PATH")
    variables = hostvsock.environment(paths.run, platform.machine(), os.environ)
    os.execve(program, [arguments.program, *words], variables)  # noqa: S606 - what the user asked for


def connect(arguments: argparse.Namespace) -> None:
    """``connect``: until both directions have ended, or the enclave hangs up."""
    from alcove.hostvsock import stream  # noqa: PLC0415 - only this command needs it

    paths, port = Paths.from_environment(), parse_number("port", arguments.port)
    try:
        opened = stream.persist(lambda: stream.connect(_socket_of(paths, arguments.enclave), port), arguments.wait)
    except PermissionError:
        raise MachineError(
            f"only its owner may connect to the enclave `{arguments.enclave}`", hint="run this as whoever started it"
        ) from None
    except OSError:
        raise MachineError(
            f"the enclave `{arguments.enclave}` does not answer on port {port}",
            hint="does the application listen there? while it boots, `--wait SECONDS` helps",
        ) from None
    try:
        stream.attach(opened, 0, output.data)
    except ConnectionResetError:
        raise MachineError(f"the enclave `{arguments.enclave}` broke off the connection") from None


def _socket_of(paths: Paths, wanted: str) -> Path:
    """The hybrid socket of the enclave with that CID, id or name, in this order."""
    running = registry.live(paths)
    for key in ("cid", "enclave_id", "name"):
        found = [record for record in running if str(getattr(record, key)) == wanted]
        if len(found) == 1:
            return paths.enclave(found[0].enclave_id).vsock
    # not a UsageError: with --wait it may still come
    raise MachineError(
        f"no enclave has the CID, id or name `{wanted}`", code="E11", hint="`describe-enclaves` lists what is running"
    )


class _Finder:
    """Finds an enclave, and again when it has gone: its directory goes with it."""

    def __init__(self, paths: Paths, wanted: str) -> None:
        self._paths = paths
        self._wanted = wanted
        self._found: Path | None = None

    def __call__(self) -> Path:
        if self._found is None or not self._found.exists():
            self._found = _socket_of(self._paths, self._wanted)
        return self._found


def forward(arguments: argparse.Namespace) -> None:
    """``forward``: until a signal ends it."""
    from alcove.hostvsock.forward import LOCAL_CID, check_loopback, serve, vsock_dial  # noqa: PLC0415

    port = Port(parse_number("port", arguments.port))
    if arguments.cid is None:
        check_loopback()
    cid = LOCAL_CID if arguments.cid is None else parse_number("cid", arguments.cid)
    paths = Paths.from_environment()
    runtime.prepare(paths)
    asyncio.run(
        serve(
            paths.port(port),
            vsock_dial(cid, port),
            on_listening=lambda: output.say(f"enclaves reach vsock CID {cid} port {port} on port {port}"),
        )
    )


def publish(arguments: argparse.Namespace) -> None:
    """``publish``: until a signal ends it."""
    from alcove.proxy import ports  # noqa: PLC0415 - only this command needs it
    from alcove.proxy import publish as publishing  # noqa: PLC0415
    from alcove.proxy.service import stopped_by_signals  # noqa: PLC0415

    enclave = arguments.enclave
    mappings = [
        ports.parse(text, max_port=ports.MAX_TCP, max_target=ports.MAX_VSOCK, any_port=True) for text in arguments.ports
    ]
    find = _Finder(Paths.from_environment(), enclave)

    def ready(listening: list[tuple[Any, int]]) -> None:
        for (host, port, *_), target in listening:
            output.say(f"{host}:{port} leads to port {target} of the enclave `{enclave}`")

    async def serve() -> None:
        async with stopped_by_signals() as stop:
            await publishing.serve(find, mappings, stop, ready)

    output.log_to_stderr("publish")
    asyncio.run(serve())
