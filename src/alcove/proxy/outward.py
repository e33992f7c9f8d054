"""In the enclave: a TCP port on its loopback leads to one of the parent's vsock ports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from alcove.proxy.egress import LOOPBACK, listen
from alcove.proxy.metrics import Counters
from alcove.proxy.ports import Mapping
from alcove.proxy.service import accept, forwarder, tune, until
from alcove.types import PARENT_CID
from alcove.vsock import aio


async def serve(mapping: Mapping, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
    """Forward until `stop` is set.

    Args:
        mapping: From a TCP port, 0 for any, to a vsock port.
        stop: Ends it.
        ready: Called with the TCP port, once programs can connect.

    Raises:
        MachineError: The port cannot be had.
    """

    async def dial(stream: socket.socket, _peer: Any) -> socket.socket:
        tune(stream)
        return await aio.connect((PARENT_CID, mapping.target))

    with listen(mapping.port, mapping.host or LOOPBACK) as listener:
        ready(listener.getsockname()[1])
        counters = Counters(f"tcp:{mapping.port}")
        await until(stop, [accept(listener, forwarder(dial, counters), counters)])
