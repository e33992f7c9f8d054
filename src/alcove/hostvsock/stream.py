"""A stream to an enclave's port, and a program's input and output over it (devices.md §5.6)."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from alcove.errors import MachineError
from alcove.vsock.hybrid import connect

__all__ = ["attach", "connect", "persist"]

_PAUSE: Final = 0.2  # between tries
_CHUNK: Final = 65536


def persist(attempt: Callable[[], socket.socket], seconds: float) -> socket.socket:
    """Try once, and again until so many seconds are over.

    Raises:
        OSError: What the last attempt met; an AlcoveError likewise.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except (OSError, MachineError):
            if time.monotonic() + _PAUSE > deadline:
                raise
        time.sleep(_PAUSE)


def attach(stream: socket.socket, source: int, write: Callable[[bytes], None]) -> None:
    """Send what comes from a descriptor, hand over what the enclave sends, until both have ended or it hangs up.

    The end of either direction leaves the other open (half-close). The stream is closed in the end.

    Args:
        stream: The stream, blocking.
        source: Where to read from, such as 0.
        write: Takes what the enclave sends.

    Raises:
        ConnectionError: The enclave broke off.
    """
    # a thread of its own, so that a reader of ours that is slow holds up only its own direction
    threading.Thread(target=_send, args=(source, stream), daemon=True).start()
    with stream:
        while chunk := stream.recv(_CHUNK):
            write(chunk)
        hangup = select.poll()
        hangup.register(stream, 0)  # POLLHUP alone: both directions have ended
        hangup.poll()


def _send(source: int, stream: socket.socket) -> None:
    try:
        while chunk := os.read(source, _CHUNK):
            stream.sendall(chunk)
        stream.shutdown(socket.SHUT_WR)
    except OSError:  # the enclave takes no more, or there is no input
        return
