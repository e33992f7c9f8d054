"""Names to addresses: remembered for a while, asked for once at a time, and never in the loop's own thread.

getaddrinfo tells no record's time to live, and it is what knows the machine's own ways (/etc/hosts, search domains), so
the time is ours: `ttl`. A resolver that fails or hangs is bridged by what it said last.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from alcove.proxy.service import connect_tcp

TTL_SECONDS: Final = 30.0
STALE_SECONDS: Final = 3600.0  # for which an old answer is better than none
LOOKUP_SECONDS: Final = 5.0
ADDRESS_SECONDS: Final = 4.0  # for each address but the last one
MAX_NAMES: Final = 1024
_THREADS: Final = 16
_FAMILIES: Final = {None: socket.AF_UNSPEC, "4": socket.AF_INET, "6": socket.AF_INET6}

Found = tuple[int, Any]  # address family and socket address
Lookup = Callable[[str, int], Awaitable[list[Found]]]
_log = logging.getLogger("alcove.proxy")


@dataclass(slots=True)
class _Known:
    addresses: list[Found]
    at: float


class Resolver:
    """Resolves names for one event loop.

    Args:
        family: "4" or "6" for one kind of address, None for both.
        ttl: Seconds for which an answer is taken as it is.
        lookup: Asks for a name's addresses; getaddrinfo, in threads of its own, when not given.
        clock: Seconds.
    """

    def __init__(
        self,
        family: str | None = None,
        *,
        ttl: float = TTL_SECONDS,
        lookup: Lookup | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._family = _FAMILIES[family]
        self._ttl = ttl
        self._lookup = lookup or self._getaddrinfo
        self._clock = clock
        self._known: dict[tuple[str, int], _Known] = {}
        self._asking: dict[tuple[str, int], asyncio.Task[list[Found]]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "resolver")  # a thread starts when it is needed

    def close(self) -> None:
        """Ask no more; threads that wait for a resolver end with it."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, host: str, port: int) -> list[Found]:
        """The addresses of a host, the one to try first in front.

        Raises:
            OSError: It does not resolve, and did not within the last hour.
        """
        key = host, port
        known = self._known.get(key)
        if known is not None and self._clock() - known.at < self._ttl:
            return known.addresses
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(key))
            task.add_done_callback(lambda done: self._answered(key, done))
        try:
            # shielded: who asked first may be gone before the answer comes
            return await asyncio.wait_for(asyncio.shield(task), LOOKUP_SECONDS)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            if known is None or self._clock() - known.at > STALE_SECONDS:
                if isinstance(error, TimeoutError):
                    raise OSError(f"{host}: the resolver does not answer") from None
                raise
            _log.warning("%s: %s; its old address is used", host, error or "the resolver does not answer")
            return known.addresses

    async def connect(self, host: str, port: int, allowed: Callable[[Found], None] = lambda _: None) -> socket.socket:
        """A stream to a host: each address in turn; one that does not answer is tried last from then on.

        Args:
            host: Name or address.
            port: The TCP port.
            allowed: Raises for an address that must not be reached; the first that is refused ends the attempt.

        Raises:
            OSError: No address answers; says what the last one met.
        """
        found = list(await self.resolve(host, port))
        if not found:
            raise OSError("No accepted IP was found.")  # AWS's own words
        for address in found:
            allowed(address)
        for number, (family, address) in enumerate(found, 1):
            try:
                return await connect_tcp(family, address, *([ADDRESS_SECONDS] if number < len(found) else []))
            except OSError as error:
                self._demote((host, port), (family, address))
                reason = os.strerror(error.errno) if error.errno else "no answer in time"
                failure = f"{host}:{port}: {address[0]}: {reason}"
        raise OSError(failure)

    def _demote(self, key: tuple[str, int], address: Found) -> None:
        known = self._known.get(key)
        if known is not None and address in known.addresses:
            known.addresses.remove(address)
            known.addresses.append(address)

    def _answered(self, key: tuple[str, int], task: asyncio.Task[list[Found]]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen: those who waited may all have gone

    async def _ask(self, key: tuple[str, int]) -> list[Found]:
        addresses = list(dict.fromkeys(await self._lookup(*key)))
        before = self._known.pop(key, None)
        if before is not None and set(before.addresses) == set(addresses):
            addresses = before.addresses  # in the order that has proven good
        while len(self._known) >= MAX_NAMES:
            self._known.pop(next(iter(self._known)))
        self._known[key] = _Known(addresses, self._clock())
        return addresses

    async def _getaddrinfo(self, host: str, port: int) -> list[Found]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._blocking, host, port)
        return [(family, address) for family, _, _, _, address in found]

    def _blocking(self, host: str, port: int) -> list[Any]:
        return socket.getaddrinfo(host, port, family=self._family, type=socket.SOCK_STREAM)
