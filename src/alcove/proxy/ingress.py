"""In the enclave: what comes on a vsock port goes to a TCP server on the enclave's loopback.

An ordinary server is reached so; one that listens on vsock itself needs nothing of this. Who calls before the server
has started waits for it, for a while: the parent sees a port that listens, and not what is behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from alcove.proxy.metrics import Counters
from alcove.proxy.ports import Mapping
from alcove.proxy.service import accept, connect_tcp, forwarder, until
from alcove.vsock import Listener

LOOPBACK: Final = "127.0.0.1"
START_SECONDS: Final = 60.0  # for a server to begin to listen; afterwards, or once it did, a refusal is passed on
_PAUSE: Final = 0.1


async def serve(mappings: Sequence[Mapping], stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Forward until `stop` is set.

    Args:
        mappings: From vsock ports to TCP ports; `host` is the server's address when it is not 127.0.0.1.
        stop: Ends it.
        ready: Called when all ports listen.

    Raises:
        MachineError: A port is another program's.
    """
    with contextlib.ExitStack() as stack:
        listeners = [(stack.enter_context(Listener(mapping.port)).socket, mapping) for mapping in mappings]
        services = []
        for listener, mapping in listeners:
            listener.setblocking(False)
            counters = Counters(f"vsock:{mapping.port}")
            services.append(accept(listener, forwarder(_dial(mapping), counters), counters))
        ready()
        await until(stop, services)


def _dial(mapping: Mapping) -> Callable[[socket.socket, Any], Any]:
    host = mapping.host or LOOPBACK
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    loop = asyncio.get_running_loop()
    started_by = loop.time() + START_SECONDS

    async def dial(_stream: socket.socket, _peer: Any) -> socket.socket:
        nonlocal started_by
        while True:
            try:
                stream = await connect_tcp(family, (host, mapping.target))
            except ConnectionRefusedError:
                if loop.time() >= started_by:
                    raise
                await asyncio.sleep(_PAUSE)
            else:
                started_by = 0.0  # it has
                return stream

    return dial
