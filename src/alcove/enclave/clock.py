"""The parent's port 9037: what time it is, for the guest's init (guest/clock.c).

Every byte that comes is answered with ``ALCVTIME`` and the nanoseconds since 1970 (UTC) as eight bytes, big-endian; the
guest halves the way there and back. The listener is the enclave's own, as the heartbeat's is. AWS's init never asks.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from alcove.enclave.turns import take_turns
from alcove.types import Port

TIME_PORT: Final = Port(9037)  # 37 is the time protocol's (RFC 868)
_ANSWER: Final = struct.Struct(">8sQ")
_MARK: Final = b"ALCVTIME"
_QUESTIONS: Final = 16  # on one connection; init asks twelve at most


class TimeService:
    """Tell the guest the time.

    Args:
        loop: The supervisor's loop.
        listener: A listening socket, non-blocking; the caller closes it after `close`.
        clock: Nanoseconds since 1970, UTC.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._serving = asyncio.ensure_future(take_turns(loop, listener, self._answer))

    def close(self) -> None:
        """Tell no more."""
        self._serving.cancel()

    async def _answer(self, connection: socket.socket) -> None:
        for _ in range(_QUESTIONS):
            if not await self._loop.sock_recv(connection, 1):
                return
            await self._loop.sock_sendall(connection, _ANSWER.pack(_MARK, self._clock()))
