"""Alcove's own commands to talk to enclaves: ``exec``."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from typing import Final, NoReturn

from alcove.cli.parsers import Commands, command
from alcove.enclave import registry
from alcove.enclave.paths import Paths
from alcove.errors import UsageError

_EXEC: Final = """\
run a program whose AF_VSOCK sockets reach the enclaves by their CIDs

The program sees the enclaves' CIDs and is CID 3 itself, whether or not this host has vsock: connect() reaches an
enclave's port, and the ports that it binds are reached by the enclaves. Its children inherit it.

Programs that do not load the C library are not covered: static binaries, and most written in Go. Neither are
datagram and seqpacket sockets, which enclaves do not have."""


def add_commands(commands: Commands) -> None:
    """Add ``exec``."""
    parser = command(
        commands, "exec", execute, "run a program that speaks AF_VSOCK", "alcove exec -- socat - VSOCK-CONNECT:16:5000"
    )
    parser.description = _EXEC
    parser.add_argument("program", metavar="PROGRAM")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER)


def execute(arguments: argparse.Namespace) -> NoReturn:
    """``exec``: become the program."""
    from alcove import hostvsock  # noqa: PLC0415 - only this command needs it

    paths = Paths.from_environment()
    registry.prepare(paths)
    program = shutil.which(arguments.program)
    if program is None:
        raise UsageError(f"there is no program `{arguments.program}`", hint="give its path, or look at PATH")
    variables = hostvsock.environment(paths.run, platform.machine(), os.environ)
    os.execve(program, [arguments.program, *arguments.arguments], variables)  # noqa: S606 - what the user asked for
