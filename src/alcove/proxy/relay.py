"""Copy bytes between two streams until both directions have ended.

Callbacks of the event loop, not coroutines: a direction costs one system call each way for every piece, and nothing
while it is idle. What a target does not take at once is kept, one piece a direction; its source is not read meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
from collections.abc import Callable
from typing import Final

CHUNK: Final = 256 * 1024  # a Unix socket's buffer, and more than vsock's
_UNIX_BUFFER: Final = 1 << 20  # as much as the kernel gives of it: fewer turns for each mebibyte
TURNS: Final = 8  # pieces that a direction moves before others have their turn
LINGER_SECONDS: Final = 60.0  # for the other side, once this one has gone altogether

_scratch = threading.local()  # one buffer for all streams of a loop: it is empty again before the next callback


async def relay(left: socket.socket, right: socket.socket) -> tuple[int, int]:
    """Copy both ways; the end of one direction is passed on and leaves the other open (half-close).

    Both sockets must be non-blocking; they are not closed here. A side that takes no more ends its direction: its
    peer is read no more, and the other direction goes on. A side that breaks off ends both.

    Returns:
        Bytes from left to right, and from right to left.

    Raises:
        OSError: One of the sockets broke.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    ways: list[_Way] = []

    def ended(error: OSError | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        elif all(way.ended for way in ways):
            done.set_result(None)
        elif any(way.ended and way.alone() for way in ways):
            timers.append(loop.call_later(LINGER_SECONDS, ended, ConnectionResetError("the other side has gone")))

    timers: list[asyncio.TimerHandle] = []
    for stream in (left, right):
        if stream.family == socket.AF_UNIX:
            with contextlib.suppress(OSError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER)
    ways += [_Way(loop, left, right, ended), _Way(loop, right, left, ended)]
    try:
        await done
    finally:
        for way in ways:
            way.stop()
        for timer in timers:
            timer.cancel()
    return ways[0].total, ways[1].total


class _Way:
    """One direction: from `source` to `target`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        target: socket.socket,
        on_end: Callable[[OSError | None], None],
    ) -> None:
        self._loop = loop
        self._source = source
        self._target = target
        self._on_end = on_end
        self._kept = memoryview(b"")
        self.total = 0
        self.ended = False
        loop.add_reader(source.fileno(), self._readable)

    def stop(self) -> None:
        """Watch neither socket any more."""
        for descriptor, remove in (
            (self._source.fileno(), self._loop.remove_reader),
            (self._target.fileno(), self._loop.remove_writer),
        ):
            if descriptor >= 0:
                remove(descriptor)

    def alone(self) -> bool:
        """Whether nobody is left at the source, neither to send nor to hear."""
        look = select.poll()
        look.register(self._source, 0)  # POLLHUP alone: both directions have ended
        return bool(look.poll(0))

    def _readable(self) -> None:
        for _ in range(TURNS):
            if not self._move():
                return

    def _move(self) -> bool:
        """Move one piece; whether there may be more of it to move at once."""
        buffer = _buffer()
        try:
            count = self._source.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._on_end(error)
            return False
        if not count:
            self._finish()
            return False
        self.total += count
        sent = self._send(buffer[:count])
        if 0 <= sent < count:
            self._kept = memoryview(bytes(buffer[sent:count]))
            self._loop.remove_reader(self._source.fileno())
            self._loop.add_writer(self._target.fileno(), self._writable)
        return sent == count

    def _writable(self) -> None:
        sent = self._send(self._kept)
        if sent < 0:
            return
        self._kept = self._kept[sent:]
        if not self._kept:
            self._loop.remove_writer(self._target.fileno())
            self._loop.add_reader(self._source.fileno(), self._readable)

    def _send(self, data: memoryview) -> int:
        """How many bytes the target took; -1 when it takes no more at all."""
        try:
            return self._target.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            with contextlib.suppress(OSError):
                self._source.shutdown(socket.SHUT_RD)
            self._finish()
            return -1

    def _finish(self) -> None:
        self.stop()
        with contextlib.suppress(OSError):  # the other direction may have ended the connection meanwhile
            self._target.shutdown(socket.SHUT_WR)
        self.ended = True
        self._on_end(None)


def _buffer() -> memoryview:
    try:
        return _scratch.buffer  # type: ignore[no-any-return]
    except AttributeError:
        _scratch.buffer = memoryview(bytearray(CHUNK))
        return _scratch.buffer  # type: ignore[no-any-return]
