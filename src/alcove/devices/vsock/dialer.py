"""Connect to a program of the parent without ever waiting for it (devices.md §5.6)."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from alcove.devices.reactor import Reactor
from alcove.devices.unix_path import socket_address
from alcove.devices.vsock.handshake import peer_name
from alcove.errors import MachineError
from alcove.types import Cid, Port

_FIRST_RETRY: Final = 0.005  # seconds; each is twice the one before
_LAST_RETRY: Final = 0.64  # 1.28 s in all, less than the guest itself waits (devices.md §5.4)


def dial(
    reactor: Reactor,
    path: Path,
    guest: tuple[Cid, Port],
    done: Callable[[socket.socket | None], None],
    *,
    wanted: Callable[[], bool],
    retry: float = _FIRST_RETRY,
) -> None:
    """Connect to `path`.

    A Unix socket connects at once or says that its backlog is full; then this tries again for a while.

    Args:
        reactor: The event loop.
        path: Where the program listens.
        guest: CID and port of the guest's end; the program sees them as the peer's address.
        done: Called with the connected, non-blocking socket, or None.
        wanted: Whether the guest still waits; asked before each new try.
        retry: Seconds until the next try.
    """
    if not wanted():
        return
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError:  # no descriptors left
        done(None)
        return
    try:
        with contextlib.suppress(OSError):  # the name is a service to the program, not a condition
            sock.bind(peer_name(*guest, secrets.token_hex(8)))
        with socket_address(path) as address:
            sock.connect(address)
    except BlockingIOError:
        sock.close()
        if retry <= _LAST_RETRY:
            again = partial(dial, reactor, path, guest, done, wanted=wanted, retry=2 * retry)
            reactor.call_later(retry, again)
        else:
            done(None)
    except (OSError, MachineError):
        sock.close()
        done(None)
    else:
        done(sock)
