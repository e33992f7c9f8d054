"""The parent's port 9038: what an enclave whose image shows its log has printed last, told by its init (guest/log.c).

The listener is the enclave's own. What comes is kept with how the enclave ended, for its owner (`ended.save`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from alcove.types import Port

LAST_WORDS_PORT: Final = Port(9038)
MAX_WORDS: Final = 128 * 1024  # bytes; log.c's KEPT
_SECONDS: Final = 2.0


class LastWords:
    """Hear them.

    Args:
        loop: The supervisor's loop.
        listener: A listening socket, non-blocking; the caller closes it after `close`.

    Attributes:
        text: What was heard last; None when nothing was.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        self._loop = loop
        self._listener = listener
        self.text: bytes | None = None
        self._serving = asyncio.ensure_future(self._serve())

    def close(self) -> None:
        """Listen no more."""
        self._serving.cancel()

    async def _serve(self) -> None:
        # one at a time, each for two seconds at most: all that a guest can do here is to replace its own words
        while True:
            connection, _ = await self._loop.sock_accept(self._listener)
            with connection, contextlib.suppress(TimeoutError, OSError):
                connection.setblocking(False)
                self.text = await asyncio.wait_for(self._words(connection), _SECONDS)

    async def _words(self, connection: socket.socket) -> bytes:
        words = bytearray()
        while len(words) < MAX_WORDS:
            chunk = await self._loop.sock_recv(connection, MAX_WORDS - len(words))
            if not chunk:
                break
            words += chunk
        return bytes(words)
