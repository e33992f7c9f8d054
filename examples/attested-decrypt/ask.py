"""Ask a program in an enclave: one JSON line there, one back (devices.md §5.6).

The parent's end is a Unix socket: `CONNECT <port>`, then `OK <number>`, then the enclave's own bytes. As long as nobody
listens in the enclave the socket is closed without an answer, so we try again: a program under emulation takes seconds
to start.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from alcove.enclave.paths import Paths

PORT = 5000
START_SECONDS = 120.0
ANSWER_SECONDS = 180.0
PAUSE = 0.2


def ask(enclave_id: str, request: dict[str, Any], *, port: int = PORT) -> dict[str, Any]:
    """Send a request and return the answer.

    Raises:
        ConnectionError: Nobody listens there, or the enclave hung up without an answer.
    """
    with connect(Paths.from_environment().enclave(enclave_id).vsock, port) as stream:
        stream.settimeout(ANSWER_SECONDS)
        stream.sendall(json.dumps(request).encode() + b"\n")
        line = stream.makefile("rb").readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the enclave hung up without an answer")
    answer: dict[str, Any] = json.loads(line)
    return answer


def connect(path: Path, port: int, *, patience: float = START_SECONDS) -> socket.socket:
    """A stream to a port of the enclave behind the socket `path`; tries until `patience` seconds are over."""
    deadline = time.monotonic() + patience
    while True:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(PAUSE + 10)
            stream.connect(str(path))
            stream.sendall(b"CONNECT %d\n" % port)
            if _line(stream).startswith(b"OK "):
                return stream
        except OSError:
            if not path.exists():
                stream.close()
                raise ConnectionError(f"no enclave behind {path}") from None
        stream.close()
        if time.monotonic() > deadline:
            raise ConnectionError(f"nobody listens on port {port} in the enclave")
        time.sleep(PAUSE)


def _line(stream: socket.socket) -> bytes:
    """One line, byte by byte: what follows it is the enclave's."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 32:
        byte = stream.recv(1)
        if not byte:
            break
        line += byte
    return line
