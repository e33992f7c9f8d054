"""One process for each enclave: it starts the machine, serves its devices and ends with it.

The life of an enclave:

1. read the image, check it and unpack what boots (E19, E35, E59);
2. reserve name, CID, CPUs and memory (E20-E29);
3. prove who the parent is, and bind the sockets of the two devices and of the heartbeat;
4. start QEMU in its jail, and wait for the heartbeat, QEMU's end or the time-out, whichever is first (E36);
5. answer describe, console and terminate until QEMU ends;
6. leave nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from alcove.attestation.attester import Attester
from alcove.devices.nsm.backend import NsmBackend
from alcove.devices.nsm.module import NsmModule
from alcove.devices.vsock.backend import VsockBackend
from alcove.enclave import allocator, identity, registry
from alcove.enclave.config import RunRequest
from alcove.enclave.console import Console
from alcove.enclave.control import ControlServer
from alcove.enclave.paths import EnclavePaths, Paths
from alcove.enclave.pool import load_pool
from alcove.errors import AlcoveError, MachineError
from alcove.image.boot import BootFiles, prepare_boot
from alcove.image.sources.tools_tree import ToolsTree
from alcove.machine.accelerator import choose_accelerator
from alcove.machine.process import start
from alcove.machine.qemu import Qemu, find_qemu
from alcove.machine.spec import Accelerator, MachineSpec
from alcove.types import HEARTBEAT_PORT, Cid, Port

_HEARTBEAT: Final = b"\xb7"  # eif.md §10
_GIB: Final = 1024**3
_TERMINATE_SECONDS: Final = 5.0
_STDERR_LIMIT: Final = 4096


def boot_timeout(image_bytes: int, memory_mib: int) -> float:
    """Seconds that AWS gives an enclave to send its heartbeat (cli.md §3.3)."""
    by_image = 90 * (1 + max(image_bytes - 1, 0) // (6 * _GIB))
    return by_image + 90 * (1 + max(memory_mib * 1024 * 1024 - 1, 0) // (100 * _GIB))


class Supervisor:
    """Start one enclave and stay with it.

    Args:
        request: What was asked for.
        paths: Where state and runtime files live.
    """

    def __init__(self, request: RunRequest, paths: Paths) -> None:
        self._request = request
        self._paths = paths
        self._loop = asyncio.get_running_loop()
        self._cleanups = contextlib.ExitStack()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._stderr = bytearray()
        self._state = "EMPTY"
        self._console: Console | None = None

    async def boot(self) -> dict[str, Any]:
        """Steps 1 to 4. On any error everything is undone before it is raised.

        Returns:
            The JSON of run-enclave.
        """
        try:
            return await self._boot()
        except BaseException:
            self.close()
            raise

    async def serve(self) -> str:
        """Step 5: wait until the enclave ends.

        Returns:
            Why it ended, in a few words.
        """
        return await self._ended

    def terminate(self, reason: str = "terminated") -> None:
        """End the enclave; :meth:`serve` returns soon."""
        self._state = "TERMINATING"
        self._end(reason)

    def close(self) -> None:
        """Step 6: end QEMU, close every socket, remove the runtime directory."""
        self._cleanups.close()

    def describe(self) -> dict[str, Any]:
        """This enclave's entry of describe-enclaves, image and metadata included."""
        record, boot = self._record, self._image
        return run_result(record) | {
            "State": self._state,
            "Flags": "DEBUG_MODE" if record.debug_mode else "NONE",
            "Measurements": boot.measurements.to_json(),
            "ImageName": boot.image_name,
            "ImageVersion": boot.image_version,
            "Metadata": boot.metadata,
        }

    async def _boot(self) -> dict[str, Any]:
        # the image first: a damaged file must not even show up in the list
        staging = self._paths.run / f"boot-{os.getpid()}"
        self._cleanups.callback(shutil.rmtree, staging, ignore_errors=True)
        registry.prepare(self._paths)
        staging.mkdir(mode=0o700)
        self._image = prepare_boot(Path(self._request.eif_path), staging)
        qemu = find_qemu(self._paths.tools)
        accelerator = self._accelerator(qemu)
        parent = identity.load_parent(self._paths)
        enclave_id = identity.new_enclave_id(parent.instance_id)
        self._record = self._reserve(enclave_id)
        self._files = self._paths.enclave(enclave_id)
        attester = Attester(parent, enclave_id)
        self._start_devices(attester)
        heartbeat = self._listen(self._files.guest_port(HEARTBEAT_PORT))
        self._start_machine(self._spec(self._image, accelerator), qemu)
        if self._console is not None:
            await self._console.start()
        await self._wait_for_heartbeat(heartbeat)
        shutil.rmtree(staging, ignore_errors=True)
        self._state = "RUNNING"
        control = ControlServer(self._files.control, self.describe, self.terminate)
        await control.start()
        self._cleanups.callback(control.close)
        return run_result(self._record)

    def _accelerator(self, qemu: Qemu) -> Accelerator:
        tools = ToolsTree.load(self._paths.tools)
        accelerator, _ = choose_accelerator(
            qemu,
            self._request.accelerator,
            kernel=tools.kernel if tools else None,
            cache=self._paths.accelerator_proof,
        )
        return accelerator

    def _reserve(self, enclave_id: str) -> registry.Record:
        request, image = self._request, self._image
        pool = load_pool(self._paths.config)

        def decide(others: list[registry.Record]) -> registry.Record:
            allocation = allocator.allocate(
                pool,
                [other.allocation for other in others],
                image_bytes=image.size,
                memory_mib=request.memory_mib,
                cpu_count=request.cpu_count,
                cpu_ids=request.cpu_ids,
            )
            return registry.Record(
                enclave_id=enclave_id,
                name=registry.free_name(request.wanted_name, others),
                cid=registry.free_cid(request.enclave_cid, others),
                cpu_ids=allocation.cpu_ids,
                memory_mib=allocation.memory_mib,
                process_id=os.getpid(),
                debug_mode=request.debug_mode,
            )

        record, lock = registry.reserve(self._paths, enclave_id, decide)
        self._cleanups.callback(self._release, self._paths.enclave(enclave_id), lock)
        return record

    @staticmethod
    def _release(files: EnclavePaths, lock: IO[bytes]) -> None:
        shutil.rmtree(files.directory, ignore_errors=True)
        lock.close()

    def _start_devices(self, attester: Attester) -> None:
        record, files = self._record, self._files
        pcrs = identity.initial_pcrs(self._image.measurements, attester.instance_id, debug_mode=record.debug_mode)

        def attest(locked: Any, user_data: bytes | None, nonce: bytes | None, public_key: bytes | None) -> bytes:
            now = datetime.now(UTC)
            attester.renew(lambda: identity.load_parent(self._paths), now=now)
            return attester.document(locked, user_data=user_data, nonce=nonce, public_key=public_key, now=now)

        module = NsmModule(record.enclave_id, pcrs, attest, os.urandom)
        self._nsm = NsmBackend(self._loop, self._listen(files.nsm_device), module, self._device_closed("NSM"))
        self._cleanups.callback(self._nsm.close)
        self._vsock = VsockBackend(
            self._loop,
            self._listen(files.vsock_device),
            Cid(record.cid),
            host_socket=files.vsock,
            port_path=self._port_path,
            on_closed=self._device_closed("vsock"),
        )
        self._cleanups.callback(self._vsock.close)

    def _port_path(self, port: Port) -> Path | None:
        own = self._files.guest_port(port)
        return next((path for path in (own, self._paths.port(port)) if path.exists()), None)

    def _device_closed(self, name: str) -> Callable[[str | None], None]:
        # end of stream comes with QEMU's end, which has its own reason; only a broken device ends the machine
        def closed(reason: str | None) -> None:
            if reason is not None:
                self._end(f"the {name} device broke: {reason}")

        return closed

    def _listen(self, path: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._cleanups.callback(listener.close)
        previous = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise MachineError(
                f"cannot listen on `{path}`: {error.strerror or error}",
                code="E11",
                hint="a shorter ALCOVE_RUN may help",
            ) from None
        finally:
            os.umask(previous)
        listener.listen(64)
        return listener

    def _spec(self, image: BootFiles, accelerator: Accelerator) -> MachineSpec:
        return MachineSpec(
            kernel=image.kernel,
            initrd=image.initrd,
            cmdline=image.cmdline,
            cpu_count=len(self._record.cpu_ids),
            memory_mib=self._record.memory_mib,
            accelerator=accelerator,
            nsm_socket=self._files.nsm_device,
            vsock_socket=self._files.vsock_device,
            console=self._record.debug_mode,
        )

    def _start_machine(self, spec: MachineSpec, qemu: Qemu) -> None:
        console_read = console_write = None
        if spec.console:
            console_read, console_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(console_write, True)
            self._console = Console(self._loop, console_read, self._files.console)
            self._cleanups.callback(self._console.close)
        stderr_read, stderr_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(stderr_write, True)
        try:
            self._process = start(spec, qemu, console_fd=console_write, stderr_fd=stderr_write)
        finally:
            os.close(stderr_write)
            if console_write is not None:
                os.close(console_write)
        self._cleanups.callback(self._stop_machine)
        self._loop.add_reader(stderr_read, self._read_stderr, stderr_read)
        self._cleanups.callback(self._close_reader, stderr_read)
        watch = os.pidfd_open(self._process.pid)
        self._loop.add_reader(watch, self._machine_ended, watch)
        self._cleanups.callback(self._close_reader, watch)

    def _close_reader(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)

    def _read_stderr(self, descriptor: int) -> None:
        chunk = os.read(descriptor, _STDERR_LIMIT)
        if not chunk:
            self._loop.remove_reader(descriptor)
        if len(self._stderr) < _STDERR_LIMIT:
            self._stderr += chunk

    def _machine_ended(self, watch: int) -> None:
        self._loop.remove_reader(watch)
        status = self._process.wait()
        said = self._stderr.decode(errors="replace").strip().splitlines()
        self._end(said[-1] if status and said else f"the machine stopped (QEMU's status {status})")

    def _end(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    def _stop_machine(self) -> None:
        if self._process.poll() is None:
            # QEMU has nothing to save: the jail's first process is killed and its namespace goes with it
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_TERMINATE_SECONDS)

    async def _wait_for_heartbeat(self, listener: socket.socket) -> None:
        seconds = self._request.boot_timeout or boot_timeout(self._image.size, self._record.memory_mib)
        beat = asyncio.ensure_future(self._heartbeat(listener))
        either: set[asyncio.Future[Any]] = {beat, self._ended}
        done, _ = await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if beat in done:
            beat.result()
            return
        beat.cancel()
        if self._ended in done:
            raise MachineError(f"the enclave did not start: {self._ended.result()}", code="E36", hint=self._boot_hint())
        raise MachineError(
            f"the enclave did not report that it is up within {seconds:.0f} s", code="E36", hint=self._boot_hint()
        )

    def _boot_hint(self) -> str:
        if self._console is None:
            return "start it with --debug-mode and look at the console"
        last = self._console.tail().decode(errors="replace").strip().splitlines()[-3:]
        return "the console ended with: " + " | ".join(last) if last else "the console stayed empty"

    async def _heartbeat(self, listener: socket.socket) -> None:
        connection, _ = await self._loop.sock_accept(listener)
        with connection:
            connection.setblocking(False)
            if await self._loop.sock_recv(connection, 1) != _HEARTBEAT:
                raise MachineError(
                    "the enclave sent something that is no heartbeat", code="E36", hint=self._boot_hint()
                )
            await self._loop.sock_sendall(connection, _HEARTBEAT)
        listener.close()
        self._files.guest_port(HEARTBEAT_PORT).unlink(missing_ok=True)


def run_result(record: registry.Record) -> dict[str, Any]:
    """The JSON of run-enclave (cli.md §2)."""
    return {
        "EnclaveName": record.name,
        "EnclaveID": record.enclave_id,
        "ProcessID": record.process_id,
        "EnclaveCID": record.cid,
        "NumberOfCPUs": len(record.cpu_ids),
        "CPUIDs": list(record.cpu_ids),
        "MemoryMiB": record.memory_mib,
    }


def error_json(error: AlcoveError) -> dict[str, Any]:
    """An error on its way to the process that asked."""
    return {"error": {"message": error.message, "hint": error.hint, "code": error.code}}
