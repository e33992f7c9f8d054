"""A way into an enclave that can fall silent: a hybrid vsock socket before a real token server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alcove.apps.acm.calls import BY_NAME
from alcove.apps.acm.message import FrameReader
from alcove.apps.acm.relay import Relay


class Front:
    """The relay, and what it leads to.

    Attributes:
        silent: Nothing that clients send goes on.
        silent_from: The name of a call from which on a connection is silent.
        log: What the relay said.
    """

    def __init__(self, directory: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.vsock, self.device, self.socket = (directory / name for name in ("vsock.sock", "p11.sock", "relay.sock"))
        self.silent, self.silent_from = False, ""
        self.log: list[str] = []
        self._loop = loop
        self._streams: set[asyncio.StreamWriter] = set()
        self._relay: Relay | None = None

    @property
    def stalled(self) -> bool:
        """What the relay tells the agent."""
        return self._relay is not None and self._relay.stalled.is_set()

    def point(self, *, here: bool) -> None:
        """Have the relay lead here, or nowhere."""
        self._do(lambda: self._relay and self._relay.point(self.vsock if here else None))

    def hang_up(self) -> None:
        """End every connection, as the end of the enclave does."""
        self._do(lambda: [writer.transport.abort() for writer in self._streams])

    async def serve(self, ready: threading.Event) -> None:
        """Until it is cancelled."""
        self._relay = Relay(self.socket, 9999, None, self.log.append)
        async with self._relay.serving(), await asyncio.start_unix_server(self._connect, self.vsock):
            self._relay.point(self.vsock)
            ready.set()
            await asyncio.Event().wait()

    def _do(self, function: object) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (function(), done.set()))  # type: ignore[operator]
        done.wait()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"CONNECT 9999\n"
        writer.write(b"OK 1\n")
        self._streams.add(writer)
        inner_reader, inner_writer = await asyncio.open_unix_connection(self.device)
        back = asyncio.create_task(_pump(inner_reader, writer))
        frames, silent = FrameReader(), False
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65536):
                names = {frame.body[:4] for frame in frames.receive(data)}
                silent |= self.silent_from in BY_NAME and BY_NAME[self.silent_from].id.to_bytes(4) in names
                if not silent and not self.silent:
                    inner_writer.write(data)
        self._streams.discard(writer)
        inner_writer.close()
        await asyncio.gather(back, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


@contextmanager
def front(directory: Path) -> Iterator[Front]:
    """A relay and a way to the token server that listens at `p11.sock` in the directory, in a thread."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    made = Front(directory, loop)

    def body() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner, contextlib.suppress(asyncio.CancelledError):
            runner.run(made.serve(ready))

    thread = threading.Thread(target=body)
    thread.start()
    ready.wait()
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join()
