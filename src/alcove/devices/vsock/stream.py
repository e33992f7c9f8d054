"""One open connection: its state in the muxer, its host socket, and the flow between them (devices.md §5.3, §5.4)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Final

from alcove.devices.reactor import Reactor, Timer
from alcove.devices.vsock.connection import Connection, State
from alcove.devices.vsock.handshake import accepted
from alcove.devices.vsock.host_socket import Held, HostSocket
from alcove.devices.vsock.muxer import Muxer
from alcove.devices.vsock.outbox import MAX_BUFFERS, Outbox

REQUEST_SECONDS: Final = 2.0  # §5.4 rule 6
_FIRST_ASK: Final = 0.02  # seconds without credit before asking; a guest that reads on tells by itself sooner
_FIRST_ASK_SMALL: Final = 0.001  # when packets are counted, not bytes: of those the guest tells nothing by itself
_SLOWEST_ASK: Final = 1.28


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
        held: Counts what the sockets of all connections have not taken.
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
        held: Held,
    ) -> None:
        self._reactor = reactor
        self._guard = guard
        self._muxer = muxer
        self._outbox = outbox
        self._connection = connection
        self._forget = forget
        self._timer: Timer | None = None
        self._blocked = False
        self._asked = False  # since the guest's last packet
        self._deaf_guest = False
        self._ask_delay = _FIRST_ASK
        self._batch = 1  # guest buffers for the next read: follows the size of what the host sends
        self._host = HostSocket(
            reactor,
            sock,
            on_readable=self._readable,
            on_taken=self._taken,
            on_deaf=self._deaf,
            guard=guard,
            held=held,
        )

    @property
    def held(self) -> int:
        """Bytes from the guest that the socket has not taken."""
        return self._host.held

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
        self._asked = False
        if self._blocked and self._connection.credit.allowance():
            self._blocked = False
            self._cancel_timer()
            self._host.resume()

    def guest_ended(self) -> None:
        """The guest sends no more (§5.4 rule 2)."""
        self._host.end()

    def guest_deaf(self) -> None:
        """The guest takes no more: the host's writes fail from now on."""
        self._deaf_guest = True
        self._host.stop_reading()

    def drop(self) -> None:
        """End the connection at once, for the device's own sake: RST, and what the socket has not taken is lost."""
        if self._connection.state is State.CLOSED:
            self.close()
        else:
            self._fail()

    def finish(self) -> None:
        """The guest closed or reset: what it sent before still goes to the host (§5.4 rule 1)."""
        self._cancel_timer()
        self._outbox.leave(self._turn)
        self._host.stop_reading()
        self._finish_if_flushed()

    def close(self) -> None:
        """Close the socket, whatever it has not taken."""
        self._cancel_timer()
        self._outbox.leave(self._turn)
        self._host.close()
        self._forget(self._connection)

    def _readable(self) -> None:
        """The host sent something: it is this stream's turn, unless others wait for theirs."""
        if self._outbox.contended:
            self._host.pause()
            self._outbox.wait(self._turn)
        else:
            self._pump()

    def _turn(self) -> None:
        """The turn that this stream stood in line for."""
        if self._pump():
            self._host.resume()

    def _pump(self) -> bool:
        """Read once from the host, into the guest's buffers.

        Returns:
            Whether to go on when the host has more; else reading is paused.
        """
        connection = self._connection
        credit = connection.credit
        if connection.state is not State.OPEN or self._deaf_guest:
            self._host.pause()
            return False
        allowance = credit.allowance()
        if not allowance:
            self._host.pause()
            self._block()
            return False
        buffers = self._outbox.take(allowance, min(self._batch, credit.packets()))
        if not buffers:
            self._host.pause()
            self._outbox.wait(self._turn, first=True)
            return False
        try:
            length = self._host.read_into([view for buffer in buffers for view in buffer.payload])
        except BlockingIOError:
            self._outbox.send(connection, buffers, 0)
            return True
        except OSError:
            self._outbox.send(connection, buffers, 0)
            self._fail()
            return False
        used = self._outbox.send(connection, buffers, length)
        self._batch = min(2 * used, MAX_BUFFERS) if used == len(buffers) else used + 1
        if not length:
            self._host.pause()
            self._muxer.ended(connection)
            self._outbox.flush()
            return False
        if not self._asked and credit.packets_run_low():
            self._ask_now()
        return True

    def _block(self) -> None:
        """Wait for credit. The guest tells by itself when it has read much; ask too, ever more seldom (§5.3)."""
        if not self._blocked:
            self._blocked = True
            self._ask_delay = _FIRST_ASK if self._connection.credit.packets() else _FIRST_ASK_SMALL
        self._timer = self._reactor.call_later(self._ask_delay, self._guard, self._ask)

    def _ask(self) -> None:
        if self._blocked and self._connection.state is State.OPEN:
            self._ask_delay = min(2 * self._ask_delay, _SLOWEST_ASK)
            self._ask_now()
            self._block()

    def _ask_now(self) -> None:
        self._asked = True
        self._muxer.ask_for_credit(self._connection)
        self._outbox.flush()

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
