"""One open connection: its state in the muxer, its host socket, and the flow between them (devices.md §5.3, §5.4)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Final

from alcove.devices.reactor import Reactor, Timer
from alcove.devices.vsock.connection import Connection, State
from alcove.devices.vsock.handshake import accepted
from alcove.devices.vsock.host_socket import HostSocket
from alcove.devices.vsock.muxer import Muxer
from alcove.devices.vsock.outbox import MAX_BUFFERS, Outbox

REQUEST_SECONDS: Final = 2.0  # §5.4 rule 6
_FIRST_ASK: Final = 0.001  # seconds without credit before asking; a guest that reads on tells by itself sooner
_SLOWEST_ASK: Final = 0.128


class Stream:
    """A connection and its socket.

    Args:
        connection: The connection.
        sock: The host's socket, non-blocking.
        reactor: The event loop.
        guard: Runs callbacks of the loop, so that a broken queue ends the device and not the loop.
        muxer: Knows the connection.
        outbox: Where packets to the guest go.
        forget: Called with the connection once the socket is closed.
    """

    def __init__(
        self,
        connection: Connection,
        sock: socket.socket,
        *,
        reactor: Reactor,
        guard: Callable[..., None],
        muxer: Muxer,
        outbox: Outbox,
        forget: Callable[[Connection], None],
    ) -> None:
        self._reactor = reactor
        self._guard = guard
        self._muxer = muxer
        self._outbox = outbox
        self._connection = connection
        self._forget = forget
        self._timer: Timer | None = None
        self._blocked = False
        self._ask_delay = _FIRST_ASK
        self._batch = 1  # guest buffers for the next read: follows the size of what the host sends
        self._host = HostSocket(
            reactor,
            sock,
            on_readable=lambda: guard(self._pump),
            on_taken=lambda count: guard(self._taken, count),
            on_deaf=self._deaf,
        )

    def open(self) -> None:
        """The guest's connection reached the host."""
        self._host.resume()

    def offer(self) -> None:
        """The host's connection waits for the guest, for a while (§5.4 rule 6)."""
        self._timer = self._reactor.call_later(REQUEST_SECONDS, self._guard, self._timed_out)

    def accepted(self) -> None:
        """The guest accepted the host's connection: say so, and begin."""
        self._cancel_timer()
        answer = accepted(self._connection.key.host_port)
        if self._host.write([answer]) != len(answer):
            self._fail()
            return
        self._host.resume()

    def from_guest(self, views: Sequence[memoryview]) -> None:
        """Pass on the guest's data."""
        taken = self._host.write(views)
        if taken:
            self._muxer.forwarded(self._connection, taken)

    def progress(self) -> None:
        """The guest's counters arrived."""
        if self._blocked and self._connection.credit.allowance():
            self._blocked = False
            self._ask_delay = _FIRST_ASK
            self._cancel_timer()
            self._host.resume()

    def guest_ended(self) -> None:
        """The guest sends no more (§5.4 rule 2)."""
        self._host.end()

    def guest_deaf(self) -> None:
        """The guest takes no more: the host's writes fail from now on."""
        self._host.stop_reading()

    def finish(self) -> None:
        """The guest closed or reset: what it sent before still goes to the host (§5.4 rule 1)."""
        self._cancel_timer()
        self._host.stop_reading()
        self._finish_if_flushed()

    def close(self) -> None:
        """Close the socket, whatever it has not taken."""
        self._cancel_timer()
        self._host.close()
        self._forget(self._connection)

    def _pump(self) -> None:
        """Read once from the host, into the guest's buffers."""
        connection = self._connection
        allowance = connection.credit.allowance()
        if connection.state is not State.OPEN or not allowance:
            self._host.pause()
            if connection.state is State.OPEN:
                self._block()
            return
        buffers = self._outbox.take(allowance, min(self._batch, connection.credit.packets()))
        if not buffers:
            self._host.pause()
            self._outbox.wait(self._host.resume)
            return
        try:
            length = self._host.read_into([view for buffer in buffers for view in buffer.payload])
        except BlockingIOError:
            self._outbox.send(connection, buffers, 0)
            return
        except OSError:
            self._outbox.send(connection, buffers, 0)
            self._fail()
            return
        used = self._outbox.send(connection, buffers, length)
        self._batch = min(2 * used, MAX_BUFFERS) if used == len(buffers) else used + 1
        if not length:
            self._host.pause()
            self._muxer.ended(connection)
            self._outbox.flush()

    def _block(self) -> None:
        """Wait for credit. The guest tells by itself when it has read much; ask too, ever more seldom (§5.3)."""
        self._blocked = True
        self._timer = self._reactor.call_later(self._ask_delay, self._guard, self._ask)

    def _ask(self) -> None:
        if self._blocked and self._connection.state is State.OPEN:
            self._ask_delay = min(2 * self._ask_delay, _SLOWEST_ASK)
            self._muxer.ask_for_credit(self._connection)
            self._outbox.flush()
            self._block()

    def _taken(self, count: int) -> None:
        self._muxer.forwarded(self._connection, count)
        self._finish_if_flushed()
        self._outbox.flush()

    def _finish_if_flushed(self) -> None:
        if self._host.flushed and self._connection.state in (State.DRAINING, State.CLOSED):
            if self._connection.state is State.DRAINING:
                self._muxer.flushed(self._connection)
            self.close()

    def _deaf(self) -> None:
        if self._connection.state in (State.OPEN, State.DRAINING):
            self._muxer.deaf(self._connection)

    def _timed_out(self) -> None:
        self._muxer.timed_out(self._connection)
        self.close()
        self._outbox.flush()

    def _fail(self) -> None:
        self._muxer.failed(self._connection)
        self.close()
        self._outbox.flush()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
