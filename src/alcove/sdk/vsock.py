"""Streams between the enclave and its parent (sdk.md §2, §9 "early connect").

Ports are 32-bit numbers; the parent is CID 3.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from typing import Final

from alcove.errors import MachineError
from alcove.types import PARENT_CID

CONNECT_SECONDS: Final = 3.0  # AWS's SDK uses the same (sdk.md §2)
SETTLE_SECONDS: Final = 0.02  # a relay that has no server behind it hangs up within this
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
_CHUNK: Final = 1


def connect(port: int, cid: int = PARENT_CID, *, patience: float = 10.0) -> socket.socket:
    """A connected stream.

    A relay may accept before anything listens behind it, and then hangs up at once: that, like a refusal, is tried
    again until `patience` is over.

    Args:
        port: The peer's port.
        cid: The peer's CID; the parent by default.
        patience: Seconds to keep trying; at least one attempt is made.

    Raises:
        MachineError: Nobody answered.
    """
    try:
        return persist(lambda: _open(port, cid), patience)
    except OSError as error:
        raise MachineError(
            f"nobody answers on vsock CID {cid} port {port}: {error.strerror or error}",
            hint=f"is the parent's listener running, such as `vsock-proxy {port} …`?",
        ) from None


def listen(port: int, *, backlog: int = 16) -> socket.socket:
    """A socket that listens for the parent on a port.

    Raises:
        MachineError: The port is taken, or there is no vsock.
    """
    try:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind((socket.VMADDR_CID_ANY, port))
            listener.listen(backlog)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise MachineError(f"cannot listen on vsock port {port}: {error.strerror}") from None
    return listener


def persist(attempt: Callable[[], socket.socket], patience: float) -> socket.socket:
    """Try until a stream stays open; any address family will do.

    Raises:
        OSError: What the last attempt met.
    """
    deadline = time.monotonic() + patience
    pause = FIRST_PAUSE
    while True:
        try:
            return _stays(attempt())
        except OSError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _open(port: int, cid: int) -> socket.socket:
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        stream.settimeout(CONNECT_SECONDS)
        stream.connect((cid, port))
        stream.settimeout(None)
    except OSError:
        stream.close()
        raise
    return stream


def _stays(stream: socket.socket) -> socket.socket:
    """The stream, unless the peer has closed it without a word."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    try:
        if poll.poll(SETTLE_SECONDS * 1000) and not stream.recv(_CHUNK, socket.MSG_PEEK):
            raise ConnectionResetError("the peer hung up at once")
    except OSError:
        stream.close()
        raise
    return stream
