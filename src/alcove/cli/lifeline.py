"""What an enclave lets its parent see, if its image says so, and ``health``.

By `alcove-enclave run --lifeline`; its output also by LABEL alcove.log, or `build-enclave --show-log`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any, Final

from alcove.cli import output
from alcove.cli.parsers import Commands, command
from alcove.enclave import lifecycle, registry
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.errors import MachineError, ProtocolError
from alcove.vsock import hybrid

PORT: Final = 9041  # proxy/lifeline.py, which is the enclave's and is not imported for a number
INIT_PORT: Final = 9042  # image/process.py: the output alone, shown by init
_MAX_LINE: Final = 4096
_CHUNK: Final = 65536
_ANSWER_SECONDS: Final = 5.0


def add_commands(commands: Commands) -> None:
    """Add ``health``."""
    parser = command(commands, "health", health, "say how an enclave's application fares", "alcove health web")
    parser.add_argument("enclave", metavar="ENCLAVE", help="name or id")
    parser.add_argument("-f", "--follow", action="store_true", help="a line at each change, until the enclave ends")


def health(arguments: argparse.Namespace) -> int:
    """``health``: status 1 for one that is unhealthy."""
    paths, wanted = Paths.from_environment(), arguments.enclave
    running = [record for record in registry.live(paths) if wanted in (record.enclave_id, record.name)]
    record = running[-1] if running else registry.find(paths, name=wanted)
    opened = ask(paths, record, "status")
    state = None if opened is None else _told(opened, follow=arguments.follow)
    if state is None:
        hint = "its image asks for it: alcove-enclave run --health COMMAND"
        raise MachineError(f"the enclave `{wanted}` does not say how it fares", hint=hint)
    return 1 if state["health"] == "unhealthy" else 0


def _told(opened: socket.socket, *, follow: bool) -> dict[str, Any] | None:
    """Print what the enclave tells; the last of it."""
    state = None
    with opened, opened.makefile("rb") as lines, contextlib.suppress(OSError):
        opened.settimeout(None if follow else _ANSWER_SECONDS)
        while line := lines.readline(_MAX_LINE):
            state = _parse(line)
            output.text(json.dumps(state))
            if not follow:
                break
    return state


def _parse(line: bytes) -> dict[str, Any]:
    """What the enclave says is untrusted: a state and a health, and nothing else of it is printed."""
    try:
        said = json.loads(line)
        state, fares = said["state"], said["health"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ProtocolError("the enclave says nothing that can be understood about how it fares") from None
    if state not in ("running", "ended") or fares not in (None, "healthy", "unhealthy"):
        raise ProtocolError("the enclave says nothing that can be understood about how it fares")
    return {"state": state, "health": fares}


def ask(paths: Paths, record: Record, word: str, port: int = PORT) -> socket.socket | None:
    """Ask an enclave for something; None when it has no lifeline, or has it no more."""
    try:
        stream = hybrid.connect(paths.enclave(record.enclave_id).vsock, port, _ANSWER_SECONDS)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        stream.sendall(word.encode() + b"\n")
    return stream


def log(paths: Paths, record: Record, *, follow: bool) -> Iterator[bytes] | None:
    """The application's output; None when the enclave does not show it, or there is none yet."""
    for port in (PORT, INIT_PORT):
        stream = ask(paths, record, "log" if follow else "tail", port)
        if stream is None:
            continue
        if not follow:
            stream.settimeout(_ANSWER_SECONDS)
        chunks = _chunks(stream)
        if first := next(chunks, b""):
            return _with(first, chunks)
    return None


def _chunks(stream: socket.socket) -> Iterator[bytes]:
    with stream, contextlib.suppress(OSError):
        while data := stream.recv(_CHUNK):
            yield data


def _with(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def stop(paths: Paths, record: Record, grace: float) -> bool:
    """Ask an enclave's application to end, and wait.

    Args:
        paths: Where the registry is.
        record: The enclave.
        grace: Seconds that it has.

    Returns:
        Whether the enclave has ended by itself.
    """
    stream = ask(paths, record, "stop") if grace > 0 else None
    if stream is None:
        return False
    with stream:
        stream.settimeout(_ANSWER_SECONDS)
        with contextlib.suppress(OSError):
            stream.recv(_MAX_LINE)
    return lifecycle.ends(paths, record, grace)
