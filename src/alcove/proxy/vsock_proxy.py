"""vsock-proxy: enclaves reach one host and port through the parent (cli.md §6).

What differs from AWS's program, each for a complaint listed there: names are resolved for every connection and away
from the accept loop, all their addresses are tried, a failure closes that connection at once and ends nothing else,
both directions end on their own, and no number of threads limits the connections.
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
from typing import Final

from alcove.errors import InputError, UsageError
from alcove.proxy import allowlist
from alcove.proxy.relay import relay
from alcove.vsock.unix_listener import listening

CONNECT_SECONDS: Final = 10.0  # for each address
MAX_CONNECTIONS: Final = 1024  # beyond it, callers wait in the backlog
_PAUSE: Final = 0.1
_FAMILIES: Final = {None: socket.AF_UNSPEC, "4": socket.AF_INET, "6": socket.AF_INET6}

_log = logging.getLogger("alcove.proxy")


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """What one proxy does.

    Args:
        socket_path: The parent's end of the vsock port, `<runtime>/vsock/<port>.sock`.
        remote_host: Name or IP address.
        remote_port: 1 to 65535.
        allowlist: The YAML file with what may be reached.
        family: "4", "6", or None for both.
        max_connections: How many at a time.
    """

    socket_path: Path
    remote_host: str
    remote_port: int
    allowlist: Path
    family: str | None = None
    max_connections: int = MAX_CONNECTIONS

    def __post_init__(self) -> None:
        if not 0 < self.remote_port < 1 << 16 or self.family not in _FAMILIES or self.max_connections < 1:
            raise UsageError("the proxy's port, family or number of connections cannot be")


def run(config: ProxyConfig, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: What to do.
        ready: Called once enclaves can connect.

    Raises:
        UsageError: The list does not allow the remote.
        InputError: The list cannot be read.
        MachineError: The socket cannot be made, or another program has it.
    """
    asyncio.run(_until_signal(config, ready))


async def _until_signal(config: ProxyConfig, ready: Callable[[], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(config, ready, stop)


async def serve(config: ProxyConfig, ready: Callable[[], None], stop: asyncio.Event) -> None:
    """Serve until `stop` is set; otherwise as `run`."""
    await asyncio.to_thread(check_allowed, config)
    with listening(config.socket_path) as listener:
        accepting = asyncio.create_task(_accept(config, listener))
        stopping = asyncio.create_task(stop.wait())
        ready()
        try:
            await asyncio.wait((accepting, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (accepting, stopping):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await accepting


def check_allowed(config: ProxyConfig) -> None:
    """Once, at start: the remote must be on the list.

    Raises:
        UsageError: It is not.
        InputError: The list cannot be read.
    """
    try:
        text = config.allowlist.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise InputError(f"{config.allowlist}: the allow list cannot be read: {error}") from None
    entries = allowlist.parse(text)

    def resolve(host: str) -> list[str]:
        try:
            found = socket.getaddrinfo(host, None, family=_FAMILIES[config.family], type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # the latter: a label that no host name can have
            return []
        return [str(address[0]) for *_, address in found]

    if not allowlist.allows(entries, config.remote_host, config.remote_port, resolve):
        raise UsageError(
            "The given address and port are not allowed",  # AWS's own words
            hint=f"add {{address: {config.remote_host}, port: {config.remote_port}}} to {config.allowlist}",
        )


async def _accept(config: ProxyConfig, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    free = asyncio.Semaphore(config.max_connections)
    async with asyncio.TaskGroup() as tasks:
        while True:
            await free.acquire()
            try:
                stream, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the caller has gone: neither ends the service
                _log.warning("accept failed: %s", error)
                free.release()
                await asyncio.sleep(_PAUSE)
                continue
            task = tasks.create_task(_serve_one(config, stream))
            task.add_done_callback(lambda _: free.release())


async def _serve_one(config: ProxyConfig, stream: socket.socket) -> None:
    with stream:
        try:
            remote = await _connect(config)
        except (OSError, UnicodeError) as error:
            reason = str(error) or type(error).__name__
            _log.warning("%s:%d: %s", config.remote_host, config.remote_port, reason)
            return
        with remote:
            try:
                sent, received = await relay(stream, remote)
            except OSError as error:
                _log.info("a connection broke: %s", error)
            else:
                _log.info("a connection ended: %d bytes sent, %d received", sent, received)


async def _connect(config: ProxyConfig) -> socket.socket:
    """A stream to the remote: every address in turn, as the resolver orders them.

    Raises:
        OSError: The name does not resolve, or no address answers; says what the last one met.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        config.remote_host, config.remote_port, family=_FAMILIES[config.family], type=socket.SOCK_STREAM
    )
    failure: OSError = OSError("No accepted IP was found.")
    for family, kind, protocol, _, address in found:
        remote = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.sock_connect(remote, address)
            # Half-closed connections have no time limit; a dead peer is found by the kernel.
            remote.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            remote.close()
            failure = error
        except BaseException:
            remote.close()
            raise
        else:
            return remote
    raise failure
