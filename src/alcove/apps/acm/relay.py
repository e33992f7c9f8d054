"""The parent's socket for p11-kit clients, which know no hybrid vsock: each connection leads to the enclave's port.

Every request is answered within `ANSWER_SECONDS`, by the enclave or with an error (see `conversation`).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from alcove.apps.acm import pieces
from alcove.apps.acm.conversation import Conversation
from alcove.apps.acm.log import Log
from alcove.errors import MachineError, ProtocolError, UsageError
from alcove.vsock.hybrid import connect_async
from alcove.vsock.unix_listener import listening

ANSWER_SECONDS: Final = 10.0  # a signature takes milliseconds, under emulation too; a browser waits some 30 s
MAX_CLIENTS: Final = 1000  # the enclave takes 1024; a client is a process of the web server's
_PAUSE: Final = 1.0  # between looks at who waits for how long, and after the process ran out of descriptors


class Relay:
    """A Unix socket that leads to the enclave's PKCS#11 port.

    Args:
        path: The socket's.
        port: The enclave's.
        group: Who may connect beside the owner; None for nobody.
        log: Where trouble is told.

    Attributes:
        stalled: Set when the enclave did not answer in time, until it is cleared or another enclave takes its place.
    """

    def __init__(self, path: Path, port: int, group: str | None, log: Log) -> None:
        self._path, self._port, self._group, self._log = path, port, group, log
        self._vsock: Path | None = None
        self._arriving: set[asyncio.Task[None]] = set()
        self._streams: set[_Stream] = set()
        self.stalled = asyncio.Event()

    def point(self, vsock: Path | None) -> None:
        """Lead new connections to an enclave, or nowhere: then they are closed, and what old ones ask is refused."""
        self._vsock = vsock
        self.stalled.clear()
        if vsock is None:
            for stream in list(self._streams):
                stream.give_up()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listen as long as the context lasts.

        Raises:
            UsageError: There is no such group.
            MachineError: The socket cannot be had, or not be given to the group.
        """
        with listening(self._path) as listener:
            if self._group is not None:
                self._let_in(self._group)
            work = [asyncio.create_task(self._accept(listener)), asyncio.create_task(self._watch())]
            try:
                yield
            finally:
                for task in (*work, *self._arriving):
                    task.cancel()
                await asyncio.gather(*work, *self._arriving, return_exceptions=True)
                for stream in list(self._streams):
                    stream.end()

    def _let_in(self, group: str) -> None:
        try:
            shutil.chown(self._path, group=group)
            self._path.chmod(0o660)
        except LookupError:
            raise UsageError(f"acm.yaml: options.socket_group: there is no group {group}") from None
        except OSError as error:
            raise MachineError(f"{self._path} cannot be given to the group {group}: {error.strerror}") from None

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors: clients that end give some back
                self._log(f"a connection was not accepted: {error.strerror}")
                await asyncio.sleep(_PAUSE)
                continue
            if len(self._arriving) + len(self._streams) >= MAX_CLIENTS:
                client.close()  # nobody is left waiting
                continue
            task = loop.create_task(self._lead(client))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _lead(self, client: socket.socket) -> None:
        vsock = self._vsock
        with contextlib.ExitStack() as until_led:
            until_led.callback(client.close)
            if vsock is None:
                return
            try:
                enclave = await connect_async(vsock, self._port)
            except OSError:  # a timeout too
                return
            until_led.callback(enclave.close)
            if self._vsock != vsock:  # it has ended meanwhile
                return
            stream = _Stream(self._log, self._streams.discard)
            self._streams.add(stream)
            until_led.pop_all()
        await stream.begin(client, enclave)

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_PAUSE)
            late = [stream for stream in self._streams if stream.waits(clock()) > ANSWER_SECONDS]
            for stream in late:
                stream.give_up()
            if late:
                self._log(f"the enclave did not answer for {ANSWER_SECONDS:.0f} s: what was asked is refused")
                self.stalled.set()


class _Stream:
    """One client, and its way to the enclave as long as there is one."""

    def __init__(self, log: Log, on_end: Callable[[_Stream], None]) -> None:
        self._log, self._on_end = log, on_end
        self._conversation = Conversation()
        self._clock = asyncio.get_running_loop().time
        self._since = 0.0  # the time of the last answer, or of the request that now waits for one
        self._client = _Side(self._from_client, self.end)
        self._enclave: _Side | None = _Side(self._from_enclave, self.give_up)
        self._client.peer, self._enclave.peer = self._enclave, self._client

    async def begin(self, client: socket.socket, enclave: socket.socket) -> None:
        """Pass on from now on; both sockets belong to the stream when this returns."""
        loop, side = asyncio.get_running_loop(), self._enclave
        assert side is not None  # noqa: S101 - nothing has been passed on that could have ended it
        await loop.create_connection(lambda: side, sock=enclave)
        await loop.connect_accepted_socket(lambda: self._client, client)
        if self._enclave is None:  # it has gone already
            self.end()

    def waits(self, now: float) -> float:
        """For how many seconds the client has waited for the enclave."""
        return now - self._since if self._enclave is not None and self._conversation.waiting else 0.0

    def give_up(self) -> None:
        """The enclave does not answer, or has gone: refuse what is asked, and what will be."""
        side, self._enclave = self._enclave, None
        if side is None:
            return
        side.abort()
        self._client.peer = self._client  # it gets its answers here, and asks no more than it takes
        self._client.go_on()
        answers = self._conversation.give_up()
        if answers is None:
            self.end()
        else:
            self._client.write(answers)

    def end(self) -> None:
        """Close both sides."""
        side, self._enclave = self._enclave, None
        if side is not None:
            side.abort()
        self._client.end()
        self._on_end(self)

    def _from_client(self, data: bytes) -> None:
        try:
            self._take(data)
            for _ in range(pieces.MOST):
                if not self._conversation.amid:
                    break
                self._take(self._client.more())
        except ProtocolError as error:
            self._log(f"a connection was ended: {error.message}")
            self.end()

    def _take(self, data: bytes) -> None:
        if self._enclave is None:
            self._client.write(self._conversation.refuse(data))
            return
        if not self._conversation.waiting:
            self._since = self._clock()
        self._enclave.write(self._conversation.asked(data))

    def _from_enclave(self, data: bytes) -> None:
        self._since = self._clock()
        try:
            self._conversation.answered(data)
        except ProtocolError as error:
            self._log(f"the enclave's answer makes no sense: {error.message}")
            self.end()
        else:
            self._client.write(data)


class _Side(asyncio.Protocol):
    """One of a stream's two sockets; one that takes no more stops what comes from the other."""

    def __init__(self, received: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._received, self._lost = received, lost
        self._transport: asyncio.Transport | None = None
        self.peer: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream's
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._received(data)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        """See asyncio."""
        self._transport = None
        self._lost()

    def pause_writing(self) -> None:
        """See asyncio."""
        if self.peer is not None:
            self.peer.hold()

    def resume_writing(self) -> None:
        """See asyncio."""
        if self.peer is not None:
            self.peer.go_on()

    def hold(self) -> None:
        """Read no more for now."""
        if self._transport is not None:
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def more(self) -> bytes:
        """See `pieces.more`."""
        return b"" if self._transport is None else pieces.more(self._transport)

    def write(self, data: bytes) -> None:
        """Send, sooner or later."""
        if self._transport is not None:
            self._transport.write(data)

    def end(self) -> None:
        """Close, when what was written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
