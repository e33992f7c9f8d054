"""Serves the provisioning protocol, one request a connection (acm.md §4).

KMS takes its time, so requests are carried out in a thread of their own, one after the other; what they change in the
device is changed between two requests of the device's clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from alcove.apps.acm.log import Log
from alcove.apps.acm.provisioning import Provisioner
from alcove.apps.acm.rpc import pack_reply, request_reader
from alcove.errors import ProtocolError

STREAM_SECONDS: Final = 5.0  # for a request to arrive; AWS's server gives one
MAX_CONNECTIONS: Final = 16
_CHUNK: Final = 16384


def between_requests(loop: asyncio.AbstractEventLoop) -> Callable[[Callable[[], Any]], Any]:
    """Runs functions in the loop's thread, for another thread that waits for them."""

    def atomically(function: Callable[[], Any]) -> Any:
        outcome: Future[Any] = Future()

        def run() -> None:
            try:
                outcome.set_result(function())
            except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
                outcome.set_exception(error)

        loop.call_soon_threadsafe(run)
        return outcome.result()

    return atomically


class RpcServer:
    """The provisioning service on a socket."""

    def __init__(self, provisioner: Provisioner, log: Log) -> None:
        self._provisioner, self._log = provisioner, log
        self._worker = ThreadPoolExecutor(1, "provisioning")
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    async def start(self, listener: socket.socket) -> asyncio.Server:
        """Accept connections from now on; the listener belongs to the server that is returned."""
        return await asyncio.start_server(self._serve, sock=listener, limit=_CHUNK)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._slots:
            with contextlib.suppress(OSError, TimeoutError):
                try:
                    await self._exchange(reader, writer)
                except ProtocolError as error:
                    self._log(f"a provisioning request was refused: {error.message}")
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message, request = request_reader(), ...
        async with asyncio.timeout(STREAM_SECONDS):
            while request is ...:
                data = await reader.read(_CHUNK)
                if not data:
                    return
                request = message.receive(data)
        reply = await asyncio.get_running_loop().run_in_executor(self._worker, self._carry_out, request)
        writer.write(pack_reply(reply))
        async with asyncio.timeout(STREAM_SECONDS):
            await writer.drain()

    def _carry_out(self, request: Any) -> dict[str, Any]:
        try:
            reply = self._provisioner.handle(request)
        except Exception as error:  # noqa: BLE001 - the boundary: the service goes on
            self._log(f"a provisioning request failed: {type(error).__name__}")
            return {"Err": "InternalError"}
        if "Err" in reply:
            self._log(f"a provisioning request was denied: {reply['Err']}")
        return reply
