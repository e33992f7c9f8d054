"""The parent's port 9000: the guest's heartbeat, and later its init's report (eif.md §10, `report.py`).

The listener is the enclave's own, so that two starts at the same time cannot take each other's heartbeat.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from alcove.enclave.report import MAX_REPORT, Report, parse_report
from alcove.enclave.turns import take_turns
from alcove.errors import ProtocolError

_HEARTBEAT: Final = b"\xb7"  # eif.md §10


class InitChannel:
    """Hear what the guest's init has to say.

    Args:
        loop: The supervisor's loop.
        listener: A listening socket, non-blocking; the caller closes it after `close`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        self._loop = loop
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None
        self.report: Report | None = None

    async def heartbeat(self) -> None:
        """Wait for the heartbeat, answer it, and listen for reports from then on.

        Raises:
            ProtocolError: The guest sent another byte.
        """
        connection, _ = await self._loop.sock_accept(self._listener)
        with connection:
            connection.setblocking(False)
            if await self._loop.sock_recv(connection, 1) != _HEARTBEAT:
                raise ProtocolError("the enclave sent something that is no heartbeat")
            await self._loop.sock_sendall(connection, _HEARTBEAT)
        self._serving = asyncio.ensure_future(take_turns(self._loop, self._listener, self._hear))

    def close(self) -> None:
        """Listen no more."""
        if self._serving is not None:
            self._serving.cancel()

    async def _hear(self, connection: socket.socket) -> None:
        line = b""
        while len(line) < MAX_REPORT and not line.endswith(b"\n"):
            chunk = await self._loop.sock_recv(connection, MAX_REPORT - len(line))
            if not chunk:
                break
            line += chunk
        self.report = parse_report(line)
