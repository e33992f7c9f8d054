"""Serve one vhost-user front-end: its connection, its memory and its rings (devices.md §3).

1. Accept one connection; a device has one front-end and one life.
2. Read exactly one header or payload at a time, so that descriptors stay with their message (§3.1).
3. Map the memory table; a new one replaces the old. A file that its owner could shrink is refused: to touch what it
   lost would end this process with SIGBUS. QEMU seals its memfd against that.
4. Process a ring only while it is enabled and complete; look at it once when it is enabled (§3.6 rules 1 and 2).
5. Signal every new call descriptor at once, and take the newest one at the moment of signalling (rules 3 to 5).
6. A ring's size, place and base stay as they are while it is processed.
7. Whatever goes wrong ends this device, with one reason, and never raises into the event loop; the work of a wake-up is
   bounded, so that a front-end that never stops talking starves nobody.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from alcove.devices.reactor import Reactor, Timer
from alcove.devices.vhost_user import events as ev
from alcove.devices.vhost_user.mapping import map_memory
from alcove.devices.vhost_user.memory import GuestMemory
from alcove.devices.vhost_user.messages import MAX_REGIONS, RegionSpec
from alcove.devices.vhost_user.session import Session
from alcove.devices.vhost_user.vring import EVENT, Vring, close
from alcove.devices.virtio.fence import host_fence
from alcove.devices.virtio.queue import SplitQueue
from alcove.errors import AlcoveError, ProtocolError

MEMORY_TABLE_SECONDS: Final = 2.0  # §6: QEMU without share=on never sends it
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_REGIONS * array.array("i").itemsize)
_MESSAGES: Final = 32  # read in one wake-up; a start has about twenty
_UNSHARED: Final = "QEMU did not share the guest's memory; its memory back-end needs share=on"

OnClosed = Callable[[str | None], None]
"""Called once when a device ends by itself: None when the front-end hung up, else what broke."""


class VhostUserServer:
    """One device's connection to QEMU.

    Args:
        reactor: The event loop.
        listener: A listening Unix stream socket; it is not closed here.
        session: The protocol core with the device's features.
        rings: How many rings come over; the session may announce more.
        on_ring: Called with a ring's index when it may have work: kicked or just enabled.
        on_started: Called with a ring's index and base when it starts, before `on_ring`.
        on_closed: Called once at the end, unless the owner called :meth:`close`.
    """

    def __init__(
        self,
        reactor: Reactor,
        listener: socket.socket,
        session: Session,
        *,
        rings: int,
        on_ring: Callable[[int], None],
        on_started: Callable[[int, int], None],
        on_closed: OnClosed,
    ) -> None:
        self._reactor = reactor
        self._listener: socket.socket | None = listener
        self._session = session
        self._on_ring = on_ring
        self._on_started = on_started
        self._on_closed = on_closed
        self._vrings = [Vring() for _ in range(rings)]
        self._socket: socket.socket | None = None
        self._memory: GuestMemory | None = None
        self._memory_timer: Timer | None = None
        self._fence = host_fence()
        self.closed = False
        listener.setblocking(False)
        reactor.add_reader(listener.fileno(), self.guard, self._accept)

    def queue(self, index: int) -> SplitQueue | None:
        """The ring's queue, or None while the ring may not be processed."""
        return self._vrings[index].queue

    def publish(self, index: int, *, interrupt: bool = True) -> bool:
        """Show the guest what was pushed to a ring, and interrupt it once if that was anything.

        Args:
            index: The ring.
            interrupt: False leaves it to a later :meth:`interrupt`.

        Returns:
            Whether there was anything.
        """
        vring = self._vrings[index]
        if vring.queue is None or not vring.queue.publish():
            return False
        if interrupt:
            vring.interrupt()
        return True

    def interrupt(self, index: int) -> None:
        """Make the guest look at a ring."""
        self._vrings[index].interrupt()

    def guard(self, action: Callable[..., None], *args: object) -> None:
        """Run `action`; whatever it raises because of the peer ends the device with that reason."""
        if self.closed:
            return
        try:
            action(*args)
        except AlcoveError as error:
            self._end(error.message)
        except Exception as error:  # noqa: BLE001 - one device's failure must not end the loop that serves others
            self._end(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Let go of the connection, the memory and every descriptor; no callback follows."""
        if self.closed:
            return
        self.closed = True
        if self._memory_timer is not None:
            self._memory_timer.cancel()
        self._stop_listening()
        if self._socket is not None:
            self._reactor.remove_reader(self._socket.fileno())
            self._socket.close()
        for vring in self._vrings:
            vring.queue = None
            self._set_kick(vring, 0, None)
            close(vring.call)
            vring.call = None
        self._memory = None
        close(*self._session.abandoned())

    def _end(self, reason: str | None) -> None:
        if self.closed:  # an action that another one, within it, has ended
            return
        self.close()
        self._on_closed(reason)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            self._socket, _ = self._listener.accept()
        except BlockingIOError:
            return
        self._stop_listening()
        self._socket.setblocking(False)
        self._reactor.add_reader(self._socket.fileno(), self.guard, self._read)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None and listener.fileno() >= 0:
            self._reactor.remove_reader(listener.fileno())

    def _read(self) -> None:
        for _ in range(2 * _MESSAGES):  # a header and a payload each
            if self._socket is None or self.closed or not self._read_some(self._socket):
                return

    def _read_some(self, connection: socket.socket) -> bool:
        """Take one header or payload, and act on what is complete; whether there may be more."""
        try:
            data, ancillary, flags, _ = connection.recvmsg(self._session.wanted(), _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except ConnectionError:  # QEMU was killed with our replies unread
            data, ancillary, flags = b"", [], 0
        self._session.receive_data(data, _descriptors(ancillary))
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError("vhost-user: more descriptors than any message has")
        if not data:
            self._end(None)
            return False
        for event in self._session.events():
            self._handle(event)
            if self.closed:
                return False
        self._send(connection, self._session.data_to_send())
        return True

    def _send(self, connection: socket.socket, data: bytes) -> None:
        try:
            sent = connection.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except ConnectionError:  # it has hung up: the end of stream comes next
            return
        if sent != len(data):
            raise ProtocolError("vhost-user: the front-end does not read its replies")

    def _handle(self, event: ev.Event) -> None:
        match event:
            case ev.VringKick(index, fd):
                self._set_kick(self._vring(index, fd), index, fd)
            case ev.VringCall(index, fd):
                self._vring(index, fd).replace_call(fd)
            case ev.VringSize(index, size):
                self._stopped(index).size = size
            case ev.VringAddress(index):
                self._stopped(index).address = event
            case ev.VringBase(index, base):
                self._stopped(index).base = base
            case ev.VringEnabled(index, enabled):
                self._enable(index, enabled=enabled)
            case ev.VringStopped(index):
                self._stop(index)
            case ev.MemoryTable(regions, fds):
                self._map(regions, fds)
            case ev.FeaturesSet():
                self._expect_memory()
            case ev.UnusedDescriptors(fds):
                close(*fds)
            case ev.Skipped():
                pass

    def _vring(self, index: int, fd: int | None = None) -> Vring:
        if index >= len(self._vrings):
            close(fd)
            raise ProtocolError(f"vhost-user: ring {index}, which stays in the front-end")
        return self._vrings[index]

    def _stopped(self, index: int) -> Vring:
        vring = self._vring(index)
        if vring.queue is not None:
            raise ProtocolError(f"vhost-user: ring {index} is changed while it runs")
        return vring

    def _expect_memory(self) -> None:
        if self._memory is None and self._memory_timer is None:
            self._memory_timer = self._reactor.call_later(MEMORY_TABLE_SECONDS, self.guard, self._memory_missing)

    def _memory_missing(self) -> None:
        raise ProtocolError(_UNSHARED)

    def _map(self, regions: Sequence[RegionSpec], fds: Sequence[int]) -> None:
        if self._memory_timer is not None:
            self._memory_timer.cancel()
            self._memory_timer = None
        try:
            self._memory = map_memory(regions, fds)
        finally:
            close(*fds)
        for index, vring in enumerate(self._vrings):
            if vring.queue is not None:  # a table that changes under running rings: views of the old one must go
                vring.base = vring.queue.next_available
                self._start(index)

    def _set_kick(self, vring: Vring, index: int, fd: int | None) -> None:
        old, vring.kick = vring.kick, fd
        if old is not None:
            self._reactor.remove_reader(old)
            os.close(old)
        if fd is not None:
            os.set_blocking(fd, False)
            self._reactor.add_reader(fd, self.guard, self._kicked, index)

    def _kicked(self, index: int) -> None:
        vring = self._vrings[index]
        if vring.kick is None:
            return
        try:
            count = len(os.read(vring.kick, EVENT.size))
        except BlockingIOError:
            count = EVENT.size
        if count != EVENT.size:
            raise ProtocolError(f"vhost-user: the kick descriptor of ring {index} is no eventfd")
        if vring.queue is not None:
            self._on_ring(index)

    def _enable(self, index: int, *, enabled: bool) -> None:
        vring = self._vring(index)
        if not enabled:
            vring.pause()
        elif vring.queue is None:
            self._start(index)
            self._on_started(index, vring.base)
            self._on_ring(index)

    def _start(self, index: int) -> None:
        if self._memory is None:
            raise ProtocolError(_UNSHARED)
        self._vrings[index].start(self._memory, self._fence)

    def _stop(self, index: int) -> None:
        if index < len(self._vrings):
            vring = self._vrings[index]
            vring.pause()
            self._set_kick(vring, index, None)
            self._session.answer_vring_base(vring.base)
        else:
            self._session.answer_vring_base(0)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)
