"""The front-end's side of a vhost-user connection, as QEMU 11 speaks it (devices.md §3.4, §3.5)."""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence

from alcove.devices.vhost_user import messages as wire
from alcove.devices.vhost_user.messages import ProtocolFeature, Request


class FrontEnd:
    """One connection to a back-end; every call blocks until its answer is there.

    Args:
        path: The back-end's listening socket.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, path: str, *, timeout: float = 30.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._socket.connect(path)
        self.protocol = ProtocolFeature(0)

    def tell(self, request: Request, payload: bytes = b"", fds: Sequence[int] = (), *, ack: bool = True) -> None:
        """Send a request that has no reply of its own; `ack` waits for one if REPLY_ACK is negotiated.

        Raises:
            ConnectionError: The back-end hung up or refused.
        """
        ack = ack and bool(self.protocol & ProtocolFeature.REPLY_ACK)
        self.send_raw(wire.pack_message(request, payload, flags=wire.NEED_REPLY if ack else 0), fds)
        if ack:
            (status,) = wire.U64.unpack(self._reply(request))
            if status:
                raise ConnectionError(f"request {int(request)} was refused with {status}")

    def ask(self, request: Request, payload: bytes = b"") -> bytes:
        """Send a request that has a reply, and return the reply's payload; errors as in :meth:`tell`."""
        self.send_raw(wire.pack_message(request, payload))
        return self._reply(request)

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send any bytes, with descriptors on the first of them."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([data], ancillary)

    def hung_up(self) -> bool:
        """Whether the back-end has hung up; waits for it."""
        try:
            return not self._socket.recv(1)
        except ConnectionError:
            return True

    def fileno(self) -> int:
        """Of the connection; negative once it is closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _reply(self, request: Request) -> bytes:
        number, flags, size = wire.HEADER.unpack(self._receive(wire.HEADER.size))
        if (number, flags) != (request, wire.VERSION | wire.REPLY):
            raise ConnectionError(f"request {number} with flags {flags:#x} in reply to {int(request)}")
        return self._receive(size)

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise ConnectionError("the back-end hung up")
            data += chunk
        return data
