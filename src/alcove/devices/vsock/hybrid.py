"""The parent's listening socket: local programs ask here for connections to the guest (devices.md §5.6)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from alcove.devices.reactor import Reactor, Timer
from alcove.devices.unix_path import listen
from alcove.devices.vsock.handshake import MAX_COMMAND, parse_command
from alcove.errors import ProtocolError
from alcove.types import Port

COMMAND_SECONDS: Final = 5.0  # for the whole command; §5.6 wants a limit in time
_MAX_WAITING: Final = 128  # clients that have not sent their command; beyond, the one that waits longest is dropped
_ACCEPT_PAUSE: Final = 1.0  # seconds, after the process ran out of descriptors
_BACKLOG: Final = 4096  # clients that wait for their turn; the kernel cuts it to net.core.somaxconn


class HybridListener:
    """Listen at `path`, read each client's command, hand over the socket.

    Args:
        reactor: The event loop.
        path: Where to listen; mode 0600, since this socket is the only access control (§5.6).
        on_client: Takes a socket and the port its client asked for.

    Raises:
        MachineError: The socket cannot be made.
    """

    def __init__(self, reactor: Reactor, path: Path, on_client: Callable[[socket.socket, Port], None]) -> None:
        self._reactor = reactor
        self._path = path
        self._on_client = on_client
        self._waiting: dict[socket.socket, tuple[bytearray, Timer]] = {}
        self._closed = self._paused = False
        self._listener = listen(path, backlog=_BACKLOG)
        reactor.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening, drop clients without a command, remove the file."""
        if self._closed:
            return
        self._closed = True
        self._reactor.remove_reader(self._listener.fileno())
        self._listener.close()
        for client in list(self._waiting):
            self._drop(client)
        self._path.unlink(missing_ok=True)

    def pause(self) -> None:
        """Let new clients wait in the queue."""
        if not self._paused and not self._closed:
            self._paused = True
            self._reactor.remove_reader(self._listener.fileno())

    def resume(self) -> None:
        """Take them again."""
        if self._paused and not self._closed:
            self._paused = False
            self._reactor.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptors left: the client stays in the queue
            self.pause()
            self._reactor.call_later(_ACCEPT_PAUSE, self.resume)
            return
        if len(self._waiting) >= _MAX_WAITING:
            self._drop(next(iter(self._waiting)))
        client.setblocking(False)
        self._waiting[client] = bytearray(), self._reactor.call_later(COMMAND_SECONDS, self._drop, client)
        self._reactor.add_reader(client.fileno(), self._read, client)

    def _read(self, client: socket.socket) -> None:
        line, _ = self._waiting[client]
        try:
            # look first: what follows the command is already for the guest
            ahead = client.recv(MAX_COMMAND - len(line), socket.MSG_PEEK)
            line += client.recv(ahead.find(b"\n") + 1 or len(ahead) or 1)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if line.endswith(b"\n"):
            self._connect(client, bytes(line))
        elif not ahead or len(line) >= MAX_COMMAND:
            self._drop(client)

    def _connect(self, client: socket.socket, line: bytes) -> None:
        try:
            port = parse_command(line)
        except ProtocolError:
            self._drop(client)
            return
        self._forget(client)
        self._on_client(client, port)

    def _forget(self, client: socket.socket) -> None:
        _, timer = self._waiting.pop(client)
        timer.cancel()
        self._reactor.remove_reader(client.fileno())

    def _drop(self, client: socket.socket) -> None:
        self._forget(client)
        client.close()
