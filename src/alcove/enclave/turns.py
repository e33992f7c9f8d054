"""One caller after the other, on the ports that the parent has for one enclave alone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from alcove.errors import ProtocolError

SECONDS: Final = 2.0  # for each: all that a guest can do with it is to keep itself waiting
_PAUSE: Final = 0.1  # seconds, after the process ran out of descriptors: the caller stays in the queue


async def take_turns(
    loop: asyncio.AbstractEventLoop, listener: socket.socket, serve: Callable[[socket.socket], Awaitable[None]]
) -> NoReturn:
    """Serve connections until cancelled.

    Args:
        loop: The loop that runs this.
        listener: A listening socket, non-blocking; the caller closes it.
        serve: Serves one; what goes wrong, or takes longer than `SECONDS`, ends that connection alone.
    """
    while True:
        try:
            connection, _ = await loop.sock_accept(listener)
        except OSError:
            await asyncio.sleep(_PAUSE)
            continue
        with connection, contextlib.suppress(TimeoutError, ProtocolError, OSError):
            connection.setblocking(False)
            await asyncio.wait_for(serve(connection), SECONDS)
