"""On the parent: a TCP port leads to a vsock port of an enclave. TLS, if any, ends in the enclave.

The enclave is looked up for every connection, so one that is started again under the same name is reached again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from alcove.errors import MachineError
from alcove.proxy.metrics import Counters
from alcove.proxy.ports import Mapping
from alcove.proxy.service import MAX_CONNECTIONS, accept, forwarder, tune, until
from alcove.vsock import hybrid

LOOPBACK: Final = "127.0.0.1"
BACKLOG: Final = 1024
DIALLING: Final = 64  # at a time: the device asks the guest for half as many, and our time runs while we wait for it

Find = Callable[[], Path]  # the enclave's hybrid socket; raises when there is none now


async def serve(
    find: Find,
    mappings: Sequence[Mapping],
    stop: asyncio.Event,
    ready: Callable[[list[tuple[Any, int]]], None],
    *,
    limit: int = MAX_CONNECTIONS,
) -> None:
    """Forward until `stop` is set.

    Args:
        find: Where the enclave is.
        mappings: From TCP ports of this machine, on 127.0.0.1 unless they say otherwise, to the enclave's vsock ports.
        stop: Ends it.
        ready: Called when all ports listen, with each one's address and the port that it leads to.
        limit: Connections at a time, on each port.

    Raises:
        MachineError: A port cannot be had.
    """
    with contextlib.ExitStack() as stack:
        listeners = [(stack.enter_context(_listen(mapping)), mapping) for mapping in mappings]
        services: list[Awaitable[None]] = []
        for listener, mapping in listeners:
            counters = Counters(f"{mapping.host or LOOPBACK}:{mapping.port}")
            services.append(accept(listener, forwarder(_dial(find, mapping.target), counters), counters, limit=limit))
        ready([(listener.getsockname(), mapping.target) for listener, mapping in listeners])
        await until(stop, services)


def _listen(mapping: Mapping) -> socket.socket:
    host = mapping.host or LOOPBACK
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, mapping.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise MachineError(f"cannot listen on {host} port {mapping.port}: {error.strerror}") from None
    return listener


def _dial(find: Find, port: int) -> Callable[[socket.socket, Any], Awaitable[socket.socket]]:
    turn = asyncio.Semaphore(DIALLING)

    async def dial(stream: socket.socket, _peer: Any) -> socket.socket:
        tune(stream)
        try:
            async with turn:
                return await hybrid.connect_async(find(), port)
        except (OSError, TimeoutError) as error:
            raise MachineError(f"the enclave does not answer on port {port}: {error}") from None

    return dial
