"""Enclaves' connections, passed on to a program that listens on the kernel's own AF_VSOCK (opt-in).

Enclaves reach the parent's ports as Unix sockets. A program that listens with AF_VSOCK, and that `alcove exec` cannot
cover, is reached through the kernel's loopback transport where there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from alcove.errors import MachineError
from alcove.proxy.relay import relay
from alcove.vsock.unix_listener import listening

LOCAL_CID: Final = 1  # VMADDR_CID_LOCAL, vsock(7)
LOOPBACK: Final = Path("/sys/module/vsock_loopback")
CONNECT_SECONDS: Final = 5.0
MAX_CONNECTIONS: Final = 256  # beyond it, enclaves wait in the backlog
Dial = Callable[[], Awaitable[socket.socket]]


def check_loopback(module: Path = LOOPBACK) -> None:
    """Look whether the kernel has vsock's loopback, without touching /dev/vsock.

    Raises:
        MachineError: It has not.
    """
    if not module.exists():
        raise MachineError(
            "this kernel has no vsock loopback",
            hint="`modprobe vsock_loopback`, or start the program with `alcove exec`, which needs none",
        )


def vsock_dial(cid: int, port: int) -> Dial:
    """Connects to a port of the kernel's own vsock."""

    async def dial() -> socket.socket:
        stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        stream.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(stream, (cid, port))
        except BaseException:
            stream.close()
            raise
        return stream

    return dial


async def serve(path: Path, dial: Dial, *, on_listening: Callable[[], None]) -> None:
    """Listen at a port's socket and pass every connection on, until cancelled.

    Raises:
        MachineError: The socket is another program's, or cannot be made.
    """
    loop = asyncio.get_running_loop()
    slots = asyncio.Semaphore(MAX_CONNECTIONS)
    with listening(path) as listener:
        on_listening()
        async with asyncio.TaskGroup() as group:
            while True:
                await slots.acquire()
                client, _ = await loop.sock_accept(listener)
                client.setblocking(False)
                group.create_task(_pass_on(client, dial)).add_done_callback(lambda _: slots.release())


async def _pass_on(client: socket.socket, dial: Dial) -> None:
    with client, contextlib.suppress(OSError, TimeoutError), await dial() as server:
        await relay(client, server)
