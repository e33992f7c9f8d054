"""The host's end of one vsock connection: a non-blocking Unix socket and what it has not taken yet.

Bytes from the guest go to the socket straight from guest memory. What the socket does not take at once is copied and
kept; credit bounds it to BUFFER bytes (devices.md §5.3), since `forwarded` counts only what the socket took. `Held`
sums it up over all connections, for the limit that is theirs together.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from alcove.devices.reactor import Reactor


class Held:
    """How many bytes of the guest the sockets of all its connections together have not taken."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class HostSocket:
    """One Unix stream socket.

    Args:
        reactor: The event loop.
        sock: The socket, non-blocking; it is closed by :meth:`close`.
        on_readable: Called whenever there is something to read, while :meth:`resume` is in force.
        on_taken: Called with the number of bytes the socket took after :meth:`write` had returned.
        on_deaf: Called once when the other side takes no more; the rest is discarded.
        guard: Runs callbacks of the loop.
        held: Counts what this socket and others have not taken.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        *,
        on_readable: Callable[[], None],
        on_taken: Callable[[int], None],
        on_deaf: Callable[[], None],
        guard: Callable[..., None],
        held: Held,
    ) -> None:
        self._reactor = reactor
        self._socket = sock
        self._on_readable = on_readable
        self._on_taken = on_taken
        self._on_deaf = on_deaf
        self._guard = guard
        self._all_held = held
        self._pending = bytearray()
        self._reading = False
        self._deaf = False
        self._end_wanted = False
        self.closed = False

    @property
    def flushed(self) -> bool:
        """Whether the socket has taken everything."""
        return not self._pending

    @property
    def held(self) -> int:
        """Bytes that the socket has not taken."""
        return len(self._pending)

    def write(self, views: Sequence[memoryview | bytes]) -> int:
        """Hand over bytes; what the socket does not take now is kept.

        Returns:
            How many bytes were taken, or discarded because the other side takes none.
        """
        length = sum(map(len, views))
        if self._deaf:
            return length
        taken = 0
        if not self._pending and length:
            try:
                taken = self._socket.sendmsg(views)
            except BlockingIOError:
                pass
            except OSError:
                self._become_deaf()
                return length
        if taken < length:
            self._keep(views, taken)
        return taken

    def end(self) -> None:
        """Tell the other side that no more comes, after everything before it."""
        self._end_wanted = True
        if self.flushed:
            self._shutdown(socket.SHUT_WR)

    def stop_reading(self) -> None:
        """Refuse what the other side still sends."""
        self.pause()
        self._shutdown(socket.SHUT_RD)

    def read_into(self, buffers: Sequence[memoryview]) -> int:
        """Read without waiting.

        Returns:
            The number of bytes; 0 at the end.

        Raises:
            BlockingIOError: There is nothing now.
            OSError: The other side broke off.
        """
        return self._socket.recvmsg_into(buffers)[0]

    def resume(self) -> None:
        """Report readable again."""
        if not self._reading and not self.closed:
            self._reading = True
            self._reactor.add_reader(self._socket.fileno(), self._guard, self._on_readable)

    def pause(self) -> None:
        """Report readable no more."""
        if self._reading:
            self._reading = False
            self._reactor.remove_reader(self._socket.fileno())

    def close(self) -> None:
        """Close the socket; what it has not taken is lost."""
        if self.closed:
            return
        self.pause()
        if self._pending:
            self._reactor.remove_writer(self._socket.fileno())
        self._all_held.count -= len(self._pending)
        self._pending.clear()
        self.closed = True
        self._socket.close()

    def _keep(self, views: Sequence[memoryview | bytes], skip: int) -> None:
        if not self._pending:
            self._reactor.add_writer(self._socket.fileno(), self._guard, self._writable)
        before = len(self._pending)
        for view in views:
            self._pending += view[skip:]
            skip = max(skip - len(view), 0)
        self._all_held.count += len(self._pending) - before

    def _writable(self) -> None:
        try:
            taken = self._socket.send(self._pending)
        except BlockingIOError:
            return
        except OSError:
            taken = len(self._pending)
            self._become_deaf()
        del self._pending[:taken]
        self._all_held.count -= taken
        if not self._pending:
            self._reactor.remove_writer(self._socket.fileno())
            if self._end_wanted:
                self._shutdown(socket.SHUT_WR)
        self._on_taken(taken)

    def _become_deaf(self) -> None:
        self._deaf = True
        self._on_deaf()

    def _shutdown(self, how: int) -> None:
        try:
            self._socket.shutdown(how)
        except OSError:  # the other side is gone already
            self._deaf = self._deaf or how == socket.SHUT_WR
