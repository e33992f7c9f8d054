"""Reads a request that comes in pieces in one turn of the event loop.

p11-kit writes each request in three pieces, right after each other. The first one wakes the reader, often in the place
of the writer, on the same processor; read one by one they cost three turns of the loop and six changes of process.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

MOST: Final = 4  # pieces in one turn, so that no sender has the loop for itself
_CHUNK: Final = 65536


def more(transport: asyncio.Transport) -> bytes:
    """What the writer has to add at once; nothing when that is not there yet, or the connection has ended or broken."""
    os.sched_yield()
    try:
        return os.read(transport.get_extra_info("socket").fileno(), _CHUNK)
    except OSError:  # also found by the transport, in its next turn
        return b""
