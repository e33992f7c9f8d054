"""In the enclave: what comes on a vsock port goes to a TCP server on the enclave's loopback.

An ordinary server is reached so; one that listens on vsock itself needs nothing of this.
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


async def serve(mappings: Sequence[Mapping], stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Forward until `stop` is set.

    Args:
        mappings: From vsock ports to TCP ports; `host` is the server's address when it is not 127.0.0.1.
        stop: Ends it.
        ready: Called when all ports listen.

    Raises:
        MachineError: A port is another program's.
        OSError: Likewise, from the kernel's own socket.
    """
    with contextlib.ExitStack() as stack:
        services = []
        for mapping in mappings:
            listener = stack.enter_context(Listener(mapping.port)).socket
            listener.setblocking(False)
            counters = Counters(f"vsock:{mapping.port}")
            services.append(accept(listener, forwarder(_dial(mapping), counters), counters))
        ready()
        await until(stop, services)


def _dial(mapping: Mapping) -> Callable[[socket.socket, Any], Any]:
    host = mapping.host or LOOPBACK
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    async def dial(_stream: socket.socket, _peer: Any) -> socket.socket:
        return await connect_tcp(family, (host, mapping.target))

    return dial
