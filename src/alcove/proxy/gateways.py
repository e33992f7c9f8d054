"""In the enclave: a resolver by which programs that know no proxy reach what the list allows.

Each name that the list allows is given an address of its own, 127.64.0.1 and on, when it is asked for; at that address
the list's ports for the name are listened on, and lead through the egress proxy. The program speaks to the name as
ever, TLS included. Names that no rule allows do not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Any, Final, cast

from alcove.errors import AlcoveError, MachineError, ProtocolError
from alcove.proxy import dns
from alcove.proxy.egress import LOOPBACK, Egress, listen
from alcove.proxy.metrics import Counters
from alcove.proxy.rules import Destination, RefusedError, destination
from alcove.proxy.service import accept, copy, tune

DNS_PORT: Final = 53
FIRST: Final = ipaddress.IPv4Address("127.64.0.1")
MAX_NAMES: Final = 1024
MAX_PORTS: Final = 16  # of one name; a rule of more ports is for the proxy
_log = logging.getLogger("alcove.proxy")


class Gateways(asyncio.DatagramProtocol):
    """Answers DNS, and listens for the names that it has answered.

    Args:
        egress: Opens the tunnels.
        tasks: Where listeners run.
    """

    def __init__(self, egress: Egress, tasks: asyncio.TaskGroup) -> None:
        self._egress = egress
        self._tasks = tasks
        self._transport: asyncio.DatagramTransport | None = None
        self._names: dict[str, ipaddress.IPv4Address] = {}
        self._listeners = contextlib.ExitStack()
        self.counters = Counters("gateways")

    def close(self) -> None:
        """Answer no more and listen no more."""
        self._listeners.close()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's: queries can come."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, address: tuple[Any, ...]) -> None:
        """asyncio's: a query came. What is none is not answered."""
        try:
            query = dns.parse_query(data)
        except ProtocolError:
            return
        if self._transport is not None:
            self._transport.sendto(self.answer(query), address)

    def answer(self, query: dns.Query) -> bytes:
        """The answer to a query: the name's own address here, or that there is no such name."""
        try:
            address = self._names.get(query.name.lower()) or self._open(query.name.lower())
        except AlcoveError as error:
            _log.warning("dns: %s", error.message)
            return dns.answer(query, dns.NO_SUCH_NAME)
        return dns.answer(query, dns.NO_ERROR, address.packed if query.type == dns.A else None)

    def _open(self, name: str) -> ipaddress.IPv4Address:
        ports = self._ports(name)
        if not ports:
            raise RefusedError(
                f"{name}: no rule of {self._egress.config.rules.owner} allows it, with a few ports by number"
            )
        if len(self._names) >= MAX_NAMES:
            raise MachineError(f"{name}: {MAX_NAMES} names have addresses already")
        address = FIRST + len(self._names)
        with contextlib.ExitStack() as undo:
            listeners = [(port, undo.enter_context(listen(port, str(address)))) for port in ports]
            self._listeners.push(undo.pop_all())
        self._names[name] = address
        for port, listener in listeners:
            self._tasks.create_task(self._accept(destination(name, port), listener))
        return address

    def _ports(self, name: str) -> list[int]:
        """The ports by which the list allows a name: of each rule that has no more than a few."""
        found = set()
        for pattern in self._egress.config.rules.names():
            ports = [port for first, last in pattern.ports for port in range(first, min(last, first + MAX_PORTS) + 1)]
            if len(ports) <= MAX_PORTS:
                found |= {port for port in ports if pattern.fits(destination(name, port))}
        return sorted(found)

    async def _accept(self, where: Destination, listener: socket.socket) -> None:
        async def handle(stream: socket.socket, _peer: Any) -> None:
            tune(stream)
            relay, first = await self._egress.open(where)
            with relay:
                await asyncio.get_running_loop().sock_sendall(stream, first)
                await copy(stream, relay, self.counters)

        await accept(listener, handle, self.counters)


async def serve(egress: Egress, ready: Callable[[], None], port: int = DNS_PORT) -> None:
    """Answer DNS on the enclave's loopback until cancelled; `ready` is called once it can be asked.

    Raises:
        MachineError: The port cannot be had.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        gateways = Gateways(egress, tasks)
        try:
            await loop.create_datagram_endpoint(lambda: gateways, (LOOPBACK, port))
        except OSError as error:
            raise MachineError(f"cannot answer DNS on {LOOPBACK} port {port}: {error.strerror}") from None
        try:
            ready()
            await loop.create_future()
        finally:
            gateways.close()
