"""Connects to Unix sockets, and waits for a place where the listener's queue is full.

A socket that does not block has EAGAIN from connect(2) then, and no connection follows: asyncio takes it for one.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Final

from alcove.devices.unix_path import socket_address

_PAUSE: Final = 0.01  # seconds between two tries


def connect(stream: socket.socket, path: Path, seconds: float) -> None:
    """Connect a blocking socket.

    Args:
        stream: The socket.
        path: Where somebody listens.
        seconds: How long the queue may stay full.

    Raises:
        TimeoutError: It stayed full.
        OSError: Nobody listens there.
    """
    deadline = time.monotonic() + seconds
    stream.setblocking(False)
    with socket_address(path) as address:
        while True:
            try:
                stream.connect(address)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path}: too many wait there") from None
                time.sleep(_PAUSE)
    stream.setblocking(True)


async def connect_async(stream: socket.socket, path: Path) -> None:
    """Connect a socket that does not block; waits for as long as it takes.

    Raises:
        OSError: Nobody listens there.
    """
    with socket_address(path) as address:
        while True:
            try:
                stream.connect(address)
                break
            except BlockingIOError:
                await asyncio.sleep(_PAUSE)
