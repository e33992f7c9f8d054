"""The console of a debug enclave: what the guest's serial port said, kept in a ring and sent to who listens."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from pathlib import Path
from typing import Final

from alcove.devices.unix_path import listen

KEPT_BYTES: Final = 1024 * 1024
_CHUNK: Final = 16384
_CHUNKS: Final = 16  # in one wake-up, more than a pipe holds: a guest that never stops talking starves nobody
_MAX_CLIENTS: Final = 16


class Console:
    """Read QEMU's serial output from a pipe; every client gets what is kept and then what comes.

    A slow client loses its connection rather than slowing the guest down.

    Args:
        loop: The supervisor's loop.
        path: Where clients connect; only the owner may.

    Raises:
        MachineError: E11 when the socket cannot be made.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        self._loop = loop
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._clients: set[asyncio.StreamWriter] = set()
        self._listener = listen(path)
        self._server: asyncio.Server | None = None
        self._source, self._input = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._input, True)
        loop.add_reader(self._source, self._read)

    def take_input(self) -> int:
        """The pipe's other end, for QEMU. The caller closes its own copy."""
        descriptor, self._input = self._input, -1
        return descriptor

    async def start(self) -> None:
        """Begin to accept clients; who has connected before is served too."""
        self._server = await asyncio.start_unix_server(self._client, sock=self._listener)

    def tail(self) -> bytes:
        """What is kept, up to 1 MiB."""
        return b"".join(self._kept)

    def drain(self) -> None:
        """Take in what the pipe holds."""
        if self._source >= 0:
            self._read()

    async def finish(self, seconds: float) -> None:
        """The end of QEMU's output: wait until the clients have taken all of it, at most so long."""
        self.drain()
        clients = list(self._clients)
        self._end_of_source()
        with contextlib.suppress(TimeoutError):
            closed = (client.wait_closed() for client in clients)
            await asyncio.wait_for(asyncio.gather(*closed, return_exceptions=True), seconds)

    def close(self) -> None:
        """End every client, close everything."""
        self.drain()
        self._end_of_source()
        if self._server is not None:
            self._server.close()
        self._listener.close()
        if self._input >= 0:
            os.close(self.take_input())

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= _MAX_CLIENTS:
            writer.close()
            return
        writer.write(self.tail())
        if self._source < 0:
            writer.close()
            return
        self._clients.add(writer)
        try:
            while await reader.read(_CHUNK):  # what they say is dropped; the end of their stream ends their interest
                pass
        except ConnectionError:
            pass
        finally:
            self._clients.discard(writer)
            writer.close()

    def _read(self) -> None:
        for _ in range(_CHUNKS):
            try:
                chunk = os.read(self._source, _CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                self._end_of_source()
                return
            self._keep(chunk)
            for writer in list(self._clients):
                if writer.transport.get_write_buffer_size() > KEPT_BYTES:
                    self._clients.discard(writer)
                    writer.transport.abort()
                else:
                    writer.write(chunk)

    def _keep(self, chunk: bytes) -> None:
        self._kept.append(chunk)
        self._size += len(chunk)
        while self._size > KEPT_BYTES:
            self._size -= len(self._kept.popleft())

    def _end_of_source(self) -> None:
        if self._source < 0:
            return
        self._loop.remove_reader(self._source)
        os.close(self._source)
        self._source = -1
        for writer in list(self._clients):
            writer.close()
