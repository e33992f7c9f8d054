"""Copy bytes between two streams until both directions have ended."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

CHUNK: Final = 65536


async def relay(left: socket.socket, right: socket.socket) -> tuple[int, int]:
    """Copy both ways; the end of one direction is passed on and leaves the other open (half-close).

    Both sockets must be non-blocking; they are not closed here. When one breaks, both directions end.

    Returns:
        Bytes from left to right, and from right to left.

    Raises:
        OSError: One of the sockets broke.
    """
    ways = [asyncio.create_task(_copy(left, right)), asyncio.create_task(_copy(right, left))]
    try:
        forth, back = await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    return forth, back


async def _copy(source: socket.socket, target: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(CHUNK))
    total = 0
    while count := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(target, buffer[:count])
        total += count
    with contextlib.suppress(OSError):  # the other direction may have ended the connection meanwhile
        target.shutdown(socket.SHUT_WR)
    return total
