"""Serves PKCS#11 to stock p11-kit clients, over Unix sockets, TCP and vsock (acm.md §6.1).

Every connection is a process of somebody's, with sessions of its own. They share one thread: what takes time is the
cryptography, and a connection that asks for much takes turns with the others.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from pathlib import Path
from typing import Final

from alcove.apps.acm import message, pieces
from alcove.apps.acm.client import Client
from alcove.apps.acm.cryptoki import Ckr
from alcove.apps.acm.log import Log
from alcove.apps.acm.message import Frame, FrameReader
from alcove.apps.acm.token import Slots
from alcove.errors import MachineError, ProtocolError, UsageError

P11_PORT: Final = 9999
MAX_CONNECTIONS: Final = 1024
HANDSHAKE_SECONDS: Final = 30.0  # until the first frame is whole; after that a connection may rest for days
FRAMES_A_TURN: Final = 16
WRITE_LIMIT: Final = 1 << 18  # bytes that wait for a client that does not read; then its requests wait
BACKLOG: Final = 256
_ADDRESS: Final = re.compile(r"unix:path=(?P<path>/.+)|vsock:port=(?P<vsock>\d+)|tcp:(?P<host>[^:]+):(?P<port>\d+)")


def listen(address: str) -> socket.socket:
    """A socket that listens at an address.

    Args:
        address: `unix:path=/…` (for the owner alone), `vsock:port=N` or `tcp:HOST:PORT`.

    Raises:
        UsageError: That is no address.
        MachineError: It is taken, or cannot be had.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(f"{address!r} is no address", hint="unix:path=/…, vsock:port=N or tcp:HOST:PORT")
    try:
        if match["path"]:
            return _listen_unix(Path(match["path"]))
        family = socket.AF_VSOCK if match["vsock"] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        if match["vsock"]:
            listener.bind((socket.VMADDR_CID_ANY, int(match["vsock"])))
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((match["host"], int(match["port"])))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        raise MachineError(f"cannot listen at {address}: {getattr(error, 'strerror', None) or error}") from None
    return listener


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(BACKLOG)
    return listener


class P11Server:
    """All connections to one device.

    Args:
        slots: The device.
        log: Where to say what went wrong.
    """

    def __init__(self, slots: Slots, log: Log) -> None:
        self._slots, self._log = slots, log
        self._open: set[_Connection] = set()

    async def start(self, listener: socket.socket) -> asyncio.Server:
        """Accept connections from now on; the listener belongs to the server that is returned."""
        return await asyncio.get_running_loop().create_server(self._connection, sock=listener, backlog=BACKLOG)

    def close(self) -> None:
        """End every connection."""
        for connection in list(self._open):
            connection.end()

    def _connection(self) -> _Connection:
        return _Connection(self._slots, self._log, self._open)


class _Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, slots: Slots, log: Log, everybody: set[_Connection]) -> None:
        self._client, self._log, self._everybody = Client(slots), log, everybody
        self._reader = FrameReader()
        self._waiting: deque[Frame] = deque()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._agreed = self._held = self._scheduled = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream's
        self._transport = transport
        if len(self._everybody) >= MAX_CONNECTIONS:
            self._log("a connection was refused: there are too many")
            self.end()
            return
        self._everybody.add(self)
        transport.set_write_buffer_limits(WRITE_LIMIT)
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self.end)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        """See asyncio. The client's sessions go with it."""
        self._everybody.discard(self)
        self._waiting.clear()
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        try:
            self._waiting += self._reader.receive(data)
            for _ in range(pieces.MOST):
                if not self._reader.amid or self._transport is None:
                    break
                self._waiting += self._reader.receive(pieces.more(self._transport))
        except ProtocolError as error:
            self._log(f"a connection was ended: {error.message}")
            self.end()
            return
        if not self._agreed and self._reader.version is not None and self._transport is not None:
            self._agreed = True
            self._transport.write(bytes([min(self._reader.version, message.VERSION)]))
        self._work()

    def pause_writing(self) -> None:
        """See asyncio: the client does not read its answers, so it gets no more."""
        self._held = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._held = False
        self._work()

    def end(self) -> None:
        """Close without a word; there is none in the protocol."""
        if self._transport is not None:
            self._transport.abort()

    def _work(self) -> None:
        """Answer some requests; others get their turn before the rest."""
        self._scheduled = False
        for _ in range(FRAMES_A_TURN):
            if not self._waiting or self._held or self._transport is None:
                break
            self._answer(self._waiting.popleft(), self._transport)
        if self._transport is None or self._held:
            return
        if not self._waiting:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
            if not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._work)

    def _answer(self, frame: Frame, transport: asyncio.Transport) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        try:
            body = self._client.handle(frame.body, new=(self._reader.version or 0) >= message.NEW_MECHANISMS)
        except ProtocolError as error:
            self._log(f"a connection was ended: {error.message}")
            self._waiting.clear()
            self.end()
            return
        except Exception as error:  # noqa: BLE001 - the boundary: a fault of ours must not end the others' service
            self._log(f"a request could not be answered: {type(error).__name__}")
            body = message.pack_error(Ckr.GENERAL_ERROR)
        transport.write(Frame(frame.code, body).pack())
