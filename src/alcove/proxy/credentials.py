"""On the parent: enclaves ask for credentials by HTTP over vsock, and get short-lived ones.

The answer is the one of a container's credentials endpoint, so that AWS's SDKs in the enclave take it unchanged through
`alcove-enclave credentials`. A lease is kept until little of it is left, and then made anew.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from alcove.errors import AlcoveError, ProtocolError
from alcove.proxy.exchange import read_head, refuse
from alcove.proxy.lease import PATH, PORT, Lease
from alcove.proxy.metrics import Counters
from alcove.proxy.rules import RefusedError
from alcove.proxy.service import accept, until
from alcove.vsock import Listener

RENEW_SECONDS: Final = 900.0  # an SDK renews when less than this is left (botocore: 15 minutes), so must we
SHARE: Final = 0.5  # and of a shorter lease when half of it is over
SOURCE_SECONDS: Final = 30.0
MAX_CONNECTIONS: Final = 256
_log = logging.getLogger("alcove.proxy")

Source = Callable[[], Lease]  # blocking: it may ask STS or the instance's metadata
Admit = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """What a provider does.

    Args:
        source: Makes a new lease; called in a thread, one call at a time.
        admit: A name for the enclave with this CID; raises RefusedError for those that get none.
        port: The parent's vsock port.
        first: A lease that was made already, or None.
    """

    source: Source
    admit: Admit
    port: int = PORT
    first: Lease | None = None


async def serve(config: ProviderConfig, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Serve until `stop` is set.

    Raises:
        MachineError: The port is another program's.
    """
    provider = Provider(config)
    with Listener(config.port) as listener:
        listener.socket.setblocking(False)

        async def handle(stream: socket.socket, name: Any) -> None:
            await provider.handle(stream, listener.peer(name)[0])

        ready()
        accepting = accept(listener.socket, handle, provider.counters, limit=MAX_CONNECTIONS, owner=listener.owner)
        await until(stop, [accepting])


class Provider:
    """Hands out leases."""

    def __init__(
        self, config: ProviderConfig, clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    ) -> None:
        self._config = config
        self._clock = clock
        self._lock = asyncio.Lock()
        first = config.first  # a lease, and how long it was at first
        self._lease = None if first is None else (first, first.left(clock()))
        self.counters = Counters(f"vsock:{config.port}")

    async def handle(self, stream: socket.socket, cid: int) -> None:
        """Answer one request of the enclave with this CID.

        Raises:
            RefusedError: It gets none; it was told.
            AlcoveError: There are none; it was told so, and no more than that.
        """
        try:
            name = await asyncio.to_thread(self._config.admit, cid)
            _check(await read_head(stream))
            lease = await self.lease()
        except RefusedError as error:
            await refuse(stream, answer(403, b'{"message": "this enclave gets no credentials"}'))
            raise RefusedError(f"CID {cid}: {error.message}") from None
        except ProtocolError:
            await refuse(stream, answer(400, b'{"message": "bad request"}'))
            raise
        except (AlcoveError, OSError):
            await refuse(stream, answer(503, b'{"message": "there are no credentials now"}'))
            raise
        _log.info("%s got %s until %s", name, lease.access_key_id, lease.expires)
        await refuse(stream, answer(200, lease.to_json()))

    async def lease(self) -> Lease:
        """The lease, made anew when little of it is left; one that cannot be renewed serves to its end.

        Raises:
            AlcoveError: There is none.
        """
        async with self._lock:
            left = self._lease[0].left(self._clock()) if self._lease else 0.0
            if self._lease is None or left < min(RENEW_SECONDS, SHARE * self._lease[1]):
                try:
                    made = await asyncio.wait_for(asyncio.to_thread(self._config.source), SOURCE_SECONDS)
                except (AlcoveError, OSError) as error:
                    if self._lease is None or left <= 0:
                        raise
                    _log.warning("the credentials were not renewed: %s", error)
                else:
                    self._lease = made, made.left(self._clock())
            return self._lease[0]


def _check(request: tuple[bytes, bytes]) -> None:
    if request[0].split(b" ", 2)[:2] != [b"GET", PATH.encode()]:
        raise ProtocolError(f"that is not GET {PATH}")


def answer(status: int, body: bytes) -> bytes:
    """An HTTP answer in JSON."""
    reasons = {200: "OK", 400: "Bad Request", 403: "Forbidden", 503: "Service Unavailable"}
    head = f"HTTP/1.1 {status} {reasons[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Cache-Control: no-store\r\nConnection: close\r\n\r\n".encode() + body
