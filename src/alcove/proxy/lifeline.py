"""In the enclave, for its parent: the application's log, how it fares, and a request to end.

An image asks for it in its CMD (`alcove-enclave run --log …`), and so it is measured: without that, an enclave outside
debug mode shows its parent nothing. A caller on vsock port 9041 sends one line:

    log         what was kept of the output, then what comes, until the application ends
    tail        what was kept, and no more
    status      a line of JSON, and another one at each change
    stop        the application gets SIGTERM; answered with a line of JSON
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from alcove.errors import ProtocolError
from alcove.proxy.metrics import Counters
from alcove.proxy.service import accept
from alcove.vsock import Listener

PORT: Final = 9041
KEPT: Final = 128 * 1024  # bytes of the log
MAX_LINE: Final = 32
MAX_CALLERS: Final = 32
LINE_SECONDS: Final = 5.0
FAREWELL_SECONDS: Final = 2.0  # for callers to take the last of the log
TRIES: Final = 3  # failures in a row that make an application unhealthy, as for Docker's HEALTHCHECK
CHECK_SECONDS: Final = 30.0  # for one check
_log = logging.getLogger("alcove.proxy")


class Log:
    """The last bytes of a stream, for readers that each have a place of their own in it."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._data = bytearray()
        self.total = 0

    def write(self, data: bytes) -> None:
        """Append, and forget what is too old."""
        self._data += data
        self.total += len(data)
        del self._data[: max(len(self._data) - self._kept, 0)]

    def read(self, at: int) -> tuple[bytes, int]:
        """What there is from a place on, and the place behind it; a reader that was too slow is told what it missed."""
        first = self.total - len(self._data)
        lost = f"\n[{first - at} bytes are lost]\n".encode() if 0 < at < first else b""
        return lost + bytes(self._data[max(at - first, 0) :]), self.total


@dataclass(slots=True)
class State:
    """What `status` tells; health is None without a check, or before its first result."""

    state: str = "running"
    health: str | None = None

    def line(self) -> bytes:
        """As a line of JSON."""
        return json.dumps({"state": self.state, "health": self.health}).encode() + b"\n"


@dataclass(slots=True)
class Lifeline:
    """What callers see of one application.

    Args:
        stop: Sends the application a signal.
        shows_log: Whether its output may be seen.
    """

    stop: Callable[[signal.Signals], None]
    shows_log: bool
    log: Log = field(default_factory=Log)
    state: State = field(default_factory=State)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: bool = False
    _callers: set[asyncio.Task[Any]] = field(default_factory=set)

    def wrote(self, data: bytes) -> None:
        """The application has written."""
        self.log.write(data)
        self._change()

    def fares(self, health: str) -> None:
        """A check's result."""
        if health != self.state.health:
            _log.warning("the application is %s", health)
            self.state.health = health
            self._change()

    async def end(self) -> None:
        """The application has ended: callers get the rest."""
        self.state.state, self._ended = "ended", True
        self._change()
        if self._callers:
            await asyncio.wait(self._callers, timeout=FAREWELL_SECONDS)

    async def serve(self, ready: Callable[[], None], port: int = PORT) -> None:
        """Serve callers until cancelled.

        Raises:
            MachineError: The port is another program's.
        """
        with Listener(port) as listener:
            listener.socket.setblocking(False)
            ready()
            await accept(listener.socket, self._handle, Counters(f"vsock:{port}"), limit=MAX_CALLERS)

    async def _handle(self, stream: socket.socket, _peer: Any) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs is in a task
        self._callers.add(task)
        try:
            await self._answer(stream, await _line(stream))
        finally:
            self._callers.discard(task)

    async def _answer(self, stream: socket.socket, line: bytes) -> None:
        loop = asyncio.get_running_loop()
        if line == b"stop":
            self.stop(signal.SIGTERM)
            await loop.sock_sendall(stream, b'{"stopping": true}\n')
        elif line == b"status":
            await self._follow(stream, self._news, b"")
        elif line in (b"log", b"tail") and self.shows_log:
            if line == b"tail":
                await loop.sock_sendall(stream, self.log.read(0)[0])
            else:
                await self._follow(stream, self.log.read, 0)
        else:
            raise ProtocolError("a caller asked for what is not there")

    async def _follow(self, stream: socket.socket, read: Callable[[Any], tuple[bytes, Any]], at: Any) -> None:
        """Send what there is, and what comes, until the end."""
        loop = asyncio.get_running_loop()
        while True:
            changed, ended = self._changed, self._ended
            data, place = read(at)
            if data:
                at = place
                await loop.sock_sendall(stream, data)
            elif ended:
                return
            else:
                await changed.wait()

    def _news(self, said: bytes) -> tuple[bytes, bytes]:
        line = self.state.line()
        return (b"" if line == said else line), line

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _line(stream: socket.socket) -> bytes:
    loop, line = asyncio.get_running_loop(), b""
    async with asyncio.timeout(LINE_SECONDS):
        while not line.endswith(b"\n"):
            chunk = await loop.sock_recv(stream, MAX_LINE - len(line))
            if not chunk:
                raise ProtocolError("a caller asked for nothing")
            line += chunk
    return line.strip()


async def check(lifeline: Lifeline, command: Sequence[str], interval: float) -> None:
    """Run a command every so often, and tell how the application fares, until cancelled."""
    failures = 0
    while True:
        await asyncio.sleep(interval)
        if await _succeeds(command):
            failures = 0
            lifeline.fares("healthy")
        else:
            failures += 1
            if failures >= TRIES:
                lifeline.fares("unhealthy")


async def _succeeds(command: Sequence[str]) -> bool:
    quiet = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=quiet, stdout=quiet, stderr=quiet)
    except OSError:
        return False
    try:
        return await asyncio.wait_for(process.wait(), CHECK_SECONDS) == 0
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            process.kill()
