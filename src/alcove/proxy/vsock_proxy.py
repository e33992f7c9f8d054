"""vsock-proxy: enclaves reach hosts and ports through the parent (cli.md §6).

What differs from AWS's program, each for a complaint listed there: one process serves many destinations; names are
resolved away from the accept loop and again when they are old, all their addresses are tried, a failure closes that
connection at once and ends nothing else, both directions end on their own, and 4096 connections are served at a time
unless fewer are asked for. SIGHUP reads the file again; connections that are open stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alcove.errors import AlcoveError, InputError, UsageError
from alcove.proxy import allowlist, lists
from alcove.proxy.allowlist import ProxyFile, Route
from alcove.proxy.metrics import Counters
from alcove.proxy.metrics_server import metrics_on
from alcove.proxy.ports import Mapping
from alcove.proxy.resolver import TTL_SECONDS, Resolver
from alcove.proxy.service import MAX_CONNECTIONS, Acceptor, forwarder, take_descriptors
from alcove.vsock.unix_listener import listening

_FAMILIES: Final = {None: socket.AF_UNSPEC, "4": socket.AF_INET, "6": socket.AF_INET6}
_log = logging.getLogger("alcove.proxy")


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """What a proxy does.

    Args:
        ports: The directory of the parent's vsock ports, `<runtime>/vsock`.
        file: The YAML file with what may be reached, and with listeners.
        route: A listener that the file need not have, or None.
        family: "4", "6", or None for both.
        max_connections: How many at a time, on each port.
        ttl: Seconds for which a name's addresses are taken as they are.
        metrics: Where Prometheus is answered, or None.
    """

    ports: Path
    file: Path
    route: Route | None = None
    family: str | None = None
    max_connections: int = MAX_CONNECTIONS
    ttl: float = TTL_SECONDS
    metrics: Mapping | None = None

    def __post_init__(self) -> None:
        if self.route is not None and not 0 < self.route.port < 1 << 16:
            raise UsageError("Remote port is not valid")
        if self.family not in _FAMILIES or self.max_connections < 1 or not self.ttl >= 0:
            raise UsageError("the proxy's family, number of connections or time to live cannot be")


Ready = Callable[[list[Route]], None]


def run(config: ProxyConfig, ready: Ready) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the file again.

    Args:
        config: What to do.
        ready: Called once enclaves can connect, and after each reading of the file, with what leads where.

    Raises:
        UsageError: The list does not allow a remote.
        InputError: The file cannot be read, or leads nowhere.
        MachineError: A socket cannot be made, or another program has it.
    """
    take_descriptors()
    asyncio.run(_until_signal(config, ready))


async def _until_signal(config: ProxyConfig, ready: Ready) -> None:
    stop, again, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()
    for number, event in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, again)):
        loop.add_signal_handler(number, event.set)
    await VsockProxy(config).serve(stop, ready, again)


class VsockProxy:
    """One process's listeners."""

    def __init__(self, config: ProxyConfig) -> None:
        self._config = config
        self._resolver = Resolver(config.family, ttl=config.ttl)
        self._sockets: dict[int, tuple[socket.socket, contextlib.ExitStack]] = {}  # by local port
        self._acceptors: dict[Route, Acceptor] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.counters: dict[Route, Counters] = {}

    async def serve(self, stop: asyncio.Event, ready: Ready, again: asyncio.Event | None = None) -> None:
        """Serve until `stop` is set; read the file again whenever `again` is. Otherwise as :func:`run`."""
        again = again or asyncio.Event()
        try:
            self._take(await asyncio.to_thread(load, self._config))
            async with metrics_on(self._config.metrics, self.counters.values):
                ready(list(self._acceptors))
                _log.info("Proxy is now in listening state")  # AWS's own words
                await self._wait(stop, ready, again)
        finally:
            for _, stack in self._sockets.values():
                stack.close()
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            self._resolver.close()

    async def _wait(self, stop: asyncio.Event, ready: Ready, again: asyncio.Event) -> None:
        while not stop.is_set():
            waits = [asyncio.create_task(event.wait()) for event in (stop, again)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if again.is_set():
                again.clear()
                await self._reload(ready)

    async def _reload(self, ready: Ready) -> None:
        try:
            self._take(await asyncio.to_thread(load, self._config))
        except AlcoveError as error:
            _log.error("the file was not taken, and what was before goes on: %s", error.message)
        else:
            ready(list(self._acceptors))

    def _take(self, routes: list[Route]) -> None:
        """Serve these routes and no others; when a port cannot be had, nothing changes."""
        wanted = {route.local_port for route in routes}
        with contextlib.ExitStack() as undo:
            opened = {port: self._listen(port, undo) for port in sorted(wanted - self._sockets.keys())}
            undo.pop_all()
        self._sockets |= opened
        for route in self._acceptors.keys() - set(routes):
            self._acceptors.pop(route).stop()
        for port in self._sockets.keys() - wanted:
            self._sockets.pop(port)[1].close()
        for route in routes:
            if route not in self._acceptors:
                self._start(route)

    def _listen(self, port: int, undo: contextlib.ExitStack) -> tuple[socket.socket, contextlib.ExitStack]:
        stack = contextlib.ExitStack()
        listener = stack.enter_context(listening(self._config.ports / f"{port}.sock"))
        undo.callback(stack.close)
        return listener, stack

    def _start(self, route: Route) -> None:
        counters = self.counters.setdefault(route, Counters(f"vsock:{route.local_port} → {route.host}:{route.port}"))

        async def dial(_stream: socket.socket, _peer: Any) -> socket.socket:
            return await self._resolver.connect(route.host, route.port)

        acceptor = Acceptor(
            self._sockets[route.local_port][0],
            forwarder(dial, counters),
            counters,
            limit=self._config.max_connections,
        )
        self._acceptors[route] = acceptor
        task = asyncio.create_task(acceptor.run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)


def load(config: ProxyConfig) -> list[Route]:
    """Read the file; every remote must be on its list.

    Raises:
        UsageError: One is not.
        InputError: The file cannot be read, or leads nowhere.
    """
    content = allowlist.parse(lists.read(config.file, "--config FILE takes another"))
    own = [] if config.route is None else [config.route]
    routes = own + [route for route in content.routes if route.local_port not in {each.local_port for each in own}]
    if not routes:
        raise InputError(
            f"{config.file} has no listeners, and none was given", hint="vsock-proxy LOCAL_PORT REMOTE_ADDR REMOTE_PORT"
        )
    for route in routes:
        _check(config, content, route)
    return routes


def _check(config: ProxyConfig, content: ProxyFile, route: Route) -> None:
    def resolve(host: str) -> list[str]:
        try:
            found = socket.getaddrinfo(host, None, family=_FAMILIES[config.family], type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # the latter: a label that no host name can have
            return []
        return [str(address[0]) for *_, address in found]

    if not allowlist.allows(content.entries, route.host, route.port, resolve):
        raise UsageError(
            "The given address and port are not allowed",  # AWS's own words
            hint=f"add {{address: {route.host}, port: {route.port}}} to {config.file}",
        )
