"""Blocking streams and listeners."""

from __future__ import annotations

import contextlib
import errno
import socket
from types import TracebackType
from typing import Final, Self

from alcove.devices.vsock.handshake import parse_peer_name
from alcove.enclave import runtime
from alcove.enclave.paths import Paths
from alcove.errors import MachineError
from alcove.types import PARENT_CID, Port
from alcove.vsock import hybrid, unix_stream
from alcove.vsock.transports import Transport, transport
from alcove.vsock.unix_listener import BACKLOG, listening

Address = tuple[int, int]  # CID and port

MAX_PORT: Final = 0xFFFFFFFF  # the last one stands for any port
CONNECT_SECONDS: Final = 10.0


def connect(address: Address, *, timeout: float = CONNECT_SECONDS) -> socket.socket:
    """A connected, blocking stream.

    Args:
        address: CID and port.
        timeout: Seconds for the connection to be made; the stream has no time limit afterwards.

    Raises:
        ConnectionRefusedError: Nobody listens there.
        OSError: ENODEV: no enclave has that CID, or no vsock leads there; anything that a socket meets.
    """
    cid, port = checked(address)
    if transport() is Transport.KERNEL:
        return _connect_kernel(cid, port, timeout)
    path, told = hybrid.socket_of(cid, port)
    if told:
        return hybrid.connect(path, port, timeout)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        unix_stream.connect(stream, path, timeout)
    except FileNotFoundError:
        stream.close()
        raise refused(port) from None
    except BaseException:
        stream.close()
        raise
    return stream


def _connect_kernel(cid: int, port: int, timeout: float) -> socket.socket:
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        stream.settimeout(timeout)
        stream.connect((cid, port))
        stream.settimeout(None)
    except BaseException:
        stream.close()
        raise
    return stream


def refused(port: int) -> ConnectionRefusedError:
    """Nobody listens on a port of the parent."""
    return ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens on vsock port {port} of the parent")


def listen(port: int, *, backlog: int = BACKLOG) -> Listener:
    """Listen on a port: in an enclave for its parent, on the parent for every enclave of this user.

    Raises:
        MachineError: The port is another program's, the runtime directory is not ours, or there is no vsock here.
    """
    return Listener(checked((PARENT_CID, port))[1], backlog)


def checked(address: Address) -> Address:
    """The address, when it can be one.

    Raises:
        ValueError: A number is out of range.
    """
    cid, port = address
    if not 0 <= cid < MAX_PORT or not 0 <= port < MAX_PORT:
        raise ValueError(f"CID {cid} and port {port} cannot be: both are numbers below 2³²-1")
    return cid, port


def _kernel_listener(port: int, backlog: int) -> socket.socket:
    try:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind((socket.VMADDR_CID_ANY, port))
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise MachineError(f"cannot listen on vsock port {port}: {error.strerror}") from None
    return listener


class Listener:
    """A socket that listens; blocking, unless it is told otherwise.

    Args:
        port: The port.
        backlog: Connections that wait to be accepted.

    Raises:
        MachineError: The port is another program's, or there is no vsock here.
    """

    def __init__(self, port: int, backlog: int = BACKLOG) -> None:
        self._address = PARENT_CID, port
        self._cleanup = contextlib.ExitStack()
        self._kernel = transport() is Transport.KERNEL
        with self._cleanup:
            if self._kernel:
                self.socket = self._cleanup.enter_context(_kernel_listener(port, backlog))
            else:
                paths = Paths.from_environment()
                runtime.prepare(paths)
                self.socket = self._cleanup.enter_context(listening(paths.port(Port(port)), backlog))
                self.socket.setblocking(True)
            self._cleanup = self._cleanup.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def accept(self) -> tuple[socket.socket, Address]:
        """The next connection, and the peer's CID and port.

        Raises:
            OSError: As the socket's own `accept`.
        """
        stream, name = self.socket.accept()
        return stream, self.peer(name)

    def peer(self, name: object) -> Address:
        """CID and port from what the socket's own `accept` said; the parent's own programs are CID 3 and port 0."""
        if self._kernel:
            assert isinstance(name, tuple)  # noqa: S101 - what the socket module documents
            return name[0], name[1]
        return parse_peer_name(name) or (PARENT_CID, 0)

    def owner(self, name: object) -> str:
        """Whose a connection is, from what the socket's own `accept` said."""
        return f"CID {self.peer(name)[0]}"

    def getsockname(self) -> Address:
        """The parent's CID, as enclaves see it, and the port."""
        return self._address

    def fileno(self) -> int:
        """The descriptor, for `select` and its kin."""
        return self.socket.fileno()

    def close(self) -> None:
        """Listen no more."""
        self._cleanup.close()
