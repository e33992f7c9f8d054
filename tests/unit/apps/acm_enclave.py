"""The enclave's program without a machine: behind a hybrid vsock socket, with a simulated security module."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

from tests.unit.apps.acm_kms import Parts

from alcove.apps.acm.parent import RunningEnclave
from alcove.apps.acm.provisioning import ImagePolicy, Provisioner
from alcove.apps.acm.rpc_server import RpcServer, between_requests
from alcove.apps.acm.server import P11Server, listen
from alcove.apps.acm.settings import EnclaveSettings
from alcove.apps.acm.token import Slots
from alcove.sdk.nsm import Nsm

P11, RPC = 9999, 10000


class Machineless:
    """A launcher: each start is a fresh service in a thread, and a process whose end is the enclave's.

    Attributes:
        starts: How many there were.
        log: What the programs in the enclaves said.
    """

    def __init__(self, directory: Path, parts: Parts, policy: ImagePolicy) -> None:
        self._directory, self._parts, self._policy = directory, parts, policy
        self._running: dict[str, tuple[asyncio.AbstractEventLoop, threading.Thread, subprocess.Popen[bytes]]] = {}
        self._thaw = threading.Event()
        self.starts = 0
        self.log: list[str] = []

    def start(self, settings: EnclaveSettings, _: Path) -> RunningEnclave:
        """See `Launcher`."""
        self.starts += 1
        place = self._directory / f"e{self.starts}"
        place.mkdir()
        ready, loop = threading.Event(), asyncio.new_event_loop()
        thread = threading.Thread(target=lambda: loop.run_until_complete(self._serve(place, ready)))
        thread.start()
        ready.wait()
        process = subprocess.Popen(["sleep", "600"])
        name = f"i-0-enc{self.starts}"
        self._running[name] = loop, thread, process
        description = {"EnclaveID": name, "EnclaveCID": 15 + self.starts, "ProcessID": process.pid}
        return RunningEnclave(description, place / "vsock.sock")

    def end(self, enclave: RunningEnclave) -> None:
        """See `Launcher`."""
        self.kill(enclave.id)

    def kill(self, name: str | None = None) -> None:
        """End an enclave, or the one that runs: its sockets and its process are gone."""
        for each in [name] if name else list(self._running):
            if each not in self._running:
                continue
            loop, thread, process = self._running.pop(each)
            self._thaw.set()
            loop.call_soon_threadsafe(lambda loop=loop: [task.cancel() for task in asyncio.all_tasks(loop)])  # type: ignore[misc]
            thread.join()
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """The enclave that runs does nothing any more, until it is ended; its sockets and its process stay."""
        ((loop, _, _),) = self._running.values()
        self._thaw.clear()
        loop.call_soon_threadsafe(self._thaw.wait)

    async def _serve(self, place: Path, ready: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        slots, way = Slots(loop.time), self._directory / "vsock" / "8000.sock"
        provisioner = Provisioner(
            slots, self._policy, lambda envelope: self._parts.connect(envelope, way), Nsm(self._parts.nsm),
            now=lambda: datetime.now(UTC), atomically=between_requests(loop),
        )  # fmt: skip
        device = P11Server(slots, self.log.append)
        servers = [
            await device.start(listen(f"unix:path={place}/{P11}")),
            await RpcServer(provisioner, self.log.append).start(listen(f"unix:path={place}/{RPC}")),
            await asyncio.start_unix_server(lambda *ends: _connect(place, *ends), place / "vsock.sock"),
        ]
        ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        (place / "vsock.sock").unlink()
        device.close()
        for server in servers:
            server.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)


async def _connect(place: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """devices.md §5.6: `CONNECT <port>`, `OK <n>`, then bytes both ways."""
    with contextlib.suppress(OSError, ValueError, asyncio.CancelledError):
        port = int((await reader.readline()).removeprefix(b"CONNECT "))
        inner_reader, inner_writer = await asyncio.open_unix_connection(place / str(port))
        writer.write(b"OK 1\n")
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
    writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
