"""The parent's port 9038: what an enclave whose image shows its log has printed last, told by its init (guest/log.c).

The listener is the enclave's own. What comes is kept with how the enclave ended, for its owner (`ended.save`).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from alcove.enclave.turns import take_turns
from alcove.types import Port

LAST_WORDS_PORT: Final = Port(9038)
MAX_WORDS: Final = 128 * 1024  # bytes; log.c's KEPT


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
        self.text: bytes | None = None
        self._serving = asyncio.ensure_future(take_turns(loop, listener, self._hear))

    def close(self) -> None:
        """Listen no more."""
        self._serving.cancel()

    async def _hear(self, connection: socket.socket) -> None:
        words = bytearray()
        while len(words) < MAX_WORDS:
            chunk = await self._loop.sock_recv(connection, MAX_WORDS - len(words))
            if not chunk:
                break
            words += chunk
        self.text = bytes(words)
