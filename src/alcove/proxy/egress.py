"""In the enclave: an HTTP proxy on its loopback, whose list is a file of the image and so is measured.

Programs are given HTTPS_PROXY and HTTP_PROXY. What the list allows goes to the parent's relay (egress_relay.py), which
resolves the name and has a list of its own. TLS ends where it did before: in the program, and at the server.

The list holds for programs that use the proxy. One that opens vsock by itself goes past it, and then meets the parent's
list only.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from alcove.errors import MachineError, ProtocolError
from alcove.proxy.egress_relay import PORT
from alcove.proxy.exchange import read_head, read_reason, refuse
from alcove.proxy.http_head import connect_request, parse_request, parse_response, response
from alcove.proxy.metrics import Counters
from alcove.proxy.rules import Destination, RefusedError, Rules
from alcove.proxy.service import MAX_CONNECTIONS, accept, copy, tune, until
from alcove.types import PARENT_CID
from alcove.vsock import aio

LOOPBACK: Final = "127.0.0.1"
RULES_FILE: Final = "/etc/alcove/egress.rules"
ANSWER_SECONDS: Final = 60.0  # for the relay's: it resolves a name and tries several addresses
BACKLOG: Final = 1024
_log = logging.getLogger("alcove.proxy")


class AnsweredError(MachineError):
    """The relay answered with an error; carries its status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status if status in (403, 502, 504) else 502


@dataclass(frozen=True, slots=True)
class EgressConfig:
    """What the proxy does.

    Args:
        rules: The list.
        port: The TCP port on the loopback; 0 for any.
        relay_port: The vsock port of the parent's relay.
        max_connections: How many at a time.
    """

    rules: Rules
    port: int = PORT
    relay_port: int = PORT
    max_connections: int = MAX_CONNECTIONS


class Egress:
    """Opens tunnels, if the list allows them."""

    def __init__(self, config: EgressConfig) -> None:
        self.config = config
        self.counters = Counters("egress")

    async def handle(self, stream: socket.socket, _peer: Any) -> None:
        """Serve one client.

        Raises:
            RefusedError: A list does not allow it; the client was told. MachineError and OSError likewise.
        """
        tune(stream)
        try:
            head, rest = await read_head(stream)
            request = parse_request(head)
            relay, first = await self.open(request.where)
        except RefusedError as error:
            await refuse(stream, response(403, f"refused: {error.message}"))
            raise
        except ProtocolError as error:
            await refuse(stream, response(400, error.message))
            raise
        except AnsweredError as error:
            await refuse(stream, response(error.status, error.message))
            raise
        except OSError as error:
            await refuse(stream, response(502, str(error)))
            raise
        with relay:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(stream, (b"" if request.head else response(200)) + first)
            await loop.sock_sendall(relay, request.head + rest)
            _log.info("%s", request.where)
            await copy(stream, relay, self.counters)

    async def open(self, where: Destination) -> tuple[socket.socket, bytes]:
        """A stream to a destination, through the parent's relay, and what the destination has said already.

        Raises:
            RefusedError: The enclave's list does not allow it.
            AnsweredError: The relay does not, or cannot.
            OSError: There is no relay.
        """
        self.config.rules.check(where)
        port = self.config.relay_port
        try:
            relay = await aio.connect((PARENT_CID, port))
        except OSError as error:
            reason = error.strerror or "no answer in time"
            raise OSError(f"the parent's relay does not answer on vsock port {port}: {reason}") from None
        try:
            return relay, await self._ask(relay, where)
        except ProtocolError as error:  # the relay's fault, or that it has no place for one more; not the client's
            relay.close()
            raise AnsweredError(502, f"the parent's relay does not answer as it should: {error.message}") from None
        except BaseException:
            relay.close()
            raise

    async def _ask(self, relay: socket.socket, where: Destination) -> bytes:
        await asyncio.get_running_loop().sock_sendall(relay, connect_request(where))
        head, rest = await read_head(relay, ANSWER_SECONDS)
        answer = parse_response(head)
        if answer.status != 200:
            raise AnsweredError(answer.status, await read_reason(relay, rest))
        if answer.address is not None and where.address is None:
            self.config.rules.check_denied(where, answer.address)
        return rest


def listen(port: int, host: str = LOOPBACK) -> socket.socket:
    """Listen on the enclave's loopback.

    Raises:
        MachineError: The port cannot be had.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise MachineError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


async def serve(egress: Egress, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
    """Serve until `stop` is set.

    Args:
        egress: The proxy.
        stop: Ends it.
        ready: Called with the TCP port, once programs can connect.

    Raises:
        MachineError: The port cannot be had.
    """
    with listen(egress.config.port) as listener:
        ready(listener.getsockname()[1])
        accepting = accept(listener, egress.handle, egress.counters, limit=egress.config.max_connections)
        await until(stop, [accepting])
