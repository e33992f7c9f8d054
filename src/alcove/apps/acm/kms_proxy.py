"""The enclave's way to KMS, which the agent serves itself: one port, one destination, bytes alone (TLS ends inside)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from alcove.apps.acm.log import Log
from alcove.apps.acm.settings import KmsSettings
from alcove.errors import UsageError
from alcove.proxy.metrics import Counters
from alcove.proxy.resolver import Resolver
from alcove.proxy.service import accept, forwarder
from alcove.sdk.endpoint import default_host
from alcove.vsock.unix_listener import TakenError, listening

MAX_CONNECTIONS: Final = 64  # an enclave asks for one key after the other
HTTPS: Final = 443
_ENDPOINT: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")


def destination(settings: KmsSettings) -> tuple[str, int]:
    """Host and port of KMS: the endpoint's, or AWS's for the region.

    Raises:
        UsageError: The endpoint is none.
    """
    endpoint = settings.endpoint if settings.endpoint is not None else default_host(settings.region)
    match = _ENDPOINT.fullmatch(endpoint)
    port = int(match[2] or HTTPS) if match else 0
    if match is None or not 0 < port < 1 << 16:
        raise UsageError(f"acm.yaml: kms.endpoint is a name, with or without a port, not {endpoint!r:.80}")
    return match[1].strip("[]"), port


@asynccontextmanager
async def serving(ports: Path, settings: KmsSettings, log: Log) -> AsyncIterator[None]:
    """Lead enclaves from their port to KMS and nowhere else, as long as the context lasts.

    A program that serves the port already, such as vsock-proxy, is left alone and taken as the way to KMS.

    Args:
        ports: Where the parent's vsock ports are, `<runtime>/vsock`; it is there.
        settings: Which KMS, and on which port.
        log: Where that is told.

    Raises:
        UsageError: The endpoint is none.
        MachineError: The port cannot be had.
    """
    host, port = destination(settings)
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(listening(ports / f"{settings.proxy_port}.sock"))
        except TakenError:
            log(f"another program serves port {settings.proxy_port}: it is taken as the way to KMS")
            yield
            return
        log(f"enclaves reach KMS at {host}:{port} through port {settings.proxy_port}")
        resolver = Resolver()
        stack.callback(resolver.close)

        said = ""

        async def dial(_stream: socket.socket, _peer: Any) -> socket.socket:
            nonlocal said  # the enclave asks again and again, and sees a reset alone
            try:
                found = await resolver.connect(host, port)
            except OSError as error:
                if said != (said := f"KMS cannot be reached: {error}"):
                    log(said)
                raise
            said = ""
            return found

        counters = Counters(f"vsock:{settings.proxy_port} → {host}:{port}")
        accepting = asyncio.create_task(accept(listener, forwarder(dial, counters), counters, limit=MAX_CONNECTIONS))
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
