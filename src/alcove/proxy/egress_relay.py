"""On the parent: enclaves ask for tunnels (CONNECT) over vsock, and get those that the parent's list allows.

The list in an enclave's image is measured, and the enclave's own; this one is the parent's, and holds whatever the
enclave does. Names are resolved here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from alcove.errors import AlcoveError, ProtocolError
from alcove.proxy.exchange import read_head, refuse
from alcove.proxy.http_head import parse_request, response
from alcove.proxy.metrics import Counters
from alcove.proxy.metrics_server import metrics_on
from alcove.proxy.ports import Mapping as PortMapping
from alcove.proxy.resolver import Found, Resolver
from alcove.proxy.rules import Address, Destination, RefusedError, Rules, plain
from alcove.proxy.service import MAX_CONNECTIONS, accept, copy, until
from alcove.vsock import Listener

PORT: Final = 3128  # the usual one of an HTTP proxy
_log = logging.getLogger("alcove.proxy")

Admit = Callable[[int], str]  # a name for the enclave with this CID; raises RefusedError for others


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """What a relay does.

    Args:
        rules: Reads the parent's list; called again on each reload.
        port: The parent's vsock port.
        admit: Which enclaves may ask.
        pinned: Names with addresses of their own; the rules hold for them all the same.
        family: "4", "6", or None for both.
        max_connections: How many at a time.
        metrics: Where Prometheus is answered, or None.
    """

    rules: Callable[[], Rules]
    port: int = PORT
    admit: Admit = "CID {}".format
    pinned: Mapping[str, str] = field(default_factory=dict)
    family: str | None = None
    max_connections: int = MAX_CONNECTIONS
    metrics: PortMapping | None = None


async def serve(
    config: RelayConfig, stop: asyncio.Event, ready: Callable[[], None], again: asyncio.Event | None = None
) -> None:
    """Serve until `stop` is set; read the list again whenever `again` is, for the connections that come then.

    Raises:
        InputError: The list is none.
        MachineError: The port is another program's.
    """
    relay = Relay(config)
    again = again or asyncio.Event()
    try:
        with Listener(config.port) as listener:
            listener.socket.setblocking(False)

            async def handle(stream: socket.socket, name: Any) -> None:
                await relay.handle(stream, listener.peer(name)[0])

            counters = relay.counters
            async with metrics_on(config.metrics, lambda: [counters]):
                ready()
                accepting = accept(
                    listener.socket, handle, counters, limit=config.max_connections, owner=listener.owner
                )
                await until(stop, [accepting, relay.reload_on(again)])
    finally:
        relay.close()


class Relay:
    """Serves connections of enclaves."""

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        self._rules = config.rules()
        self._resolver = Resolver(config.family)
        self.counters = Counters(f"vsock:{config.port}")

    def close(self) -> None:
        """Resolve no more."""
        self._resolver.close()

    async def reload_on(self, again: asyncio.Event) -> None:
        """Read the list again whenever the event is set; one that is wrong is reported and not taken."""
        while True:
            await again.wait()
            again.clear()
            try:
                self._rules = await asyncio.to_thread(self._config.rules)
            except AlcoveError as error:
                _log.error("the list was not taken, and the old one holds: %s", error.message)
            else:
                _log.warning("the list was read again")

    async def handle(self, stream: socket.socket, cid: int) -> None:
        """Serve one connection of the enclave with this CID.

        Raises:
            RefusedError: A rule does not allow it; the enclave was told.
            OSError: The destination does not answer; the enclave was told. ProtocolError likewise.
        """
        who = f"CID {cid}"
        try:
            who = self._config.admit(cid)
            where, rest = await self._request(stream)
            rules = self._rules
            rules.check(where)
            other = await self._connect(rules, where)
        except RefusedError as error:
            await refuse(stream, response(403, f"refused by the parent: {error.message}"))
            raise RefusedError(f"{who}: {error.message}") from None
        except ProtocolError as error:
            await refuse(stream, response(400, error.message))
            raise
        except (OSError, UnicodeError) as error:
            await refuse(stream, response(502, f"the parent cannot reach it: {error}"))
            raise
        with other:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(stream, response(200, address=other.getpeername()[0]))
            await loop.sock_sendall(other, rest)
            _log.info("%s: %s", who, where)
            await copy(stream, other, self.counters)

    async def _request(self, stream: socket.socket) -> tuple[Destination, bytes]:
        head, rest = await read_head(stream)
        request = parse_request(head)
        if request.head:
            raise ProtocolError(
                "this relay takes CONNECT alone", hint="`alcove-enclave egress` makes it of plain requests"
            )
        return request.where, rest

    async def _connect(self, rules: Rules, where: Destination) -> socket.socket:
        def allowed(found: Found) -> None:
            rules.check_address(where, _address(found))

        host = self._config.pinned.get(where.host, where.host)
        return await self._resolver.connect(host, where.port, allowed)


def _address(found: Found) -> Address:
    """The address as the rules know it; a zone, which link-local addresses have, makes no other address of it."""
    address = ipaddress.ip_address(str(found[1][0]).partition("%")[0])
    return plain(address) or address
