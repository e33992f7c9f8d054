"""One process for each enclave: it starts the machine, serves its devices and ends with it.

The life of an enclave:

1. read the image, check it and unpack what boots (E19, E35, E59);
2. reserve name, CID, CPUs and memory (E20-E29);
3. prove who the parent is, and bind the sockets of the two devices, the heartbeat and the time;
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
from typing import Any, Final

from alcove.attestation.attester import Attester
from alcove.devices.nsm.backend import NsmBackend
from alcove.devices.nsm.module import NsmModule
from alcove.devices.vsock.backend import VsockBackend
from alcove.enclave import ended, identity, isolation, registry
from alcove.enclave.clock import TIME_PORT, TimeService
from alcove.enclave.config import RunRequest
from alcove.enclave.console import Console
from alcove.enclave.control import Command, ControlServer
from alcove.enclave.ended import Cause, End
from alcove.enclave.init_channel import InitChannel
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.enclave.usage import tree_usage
from alcove.errors import AlcoveError, MachineError, ProtocolError
from alcove.image.boot import BootFiles, prepare_boot
from alcove.image.sources.tools_tree import ToolsTree
from alcove.machine.accelerator import choose_accelerator
from alcove.machine.process import start
from alcove.machine.qemu import Qemu, find_qemu
from alcove.machine.spec import Accelerator, GuestMemory, MachineSpec
from alcove.types import HEARTBEAT_PORT, Cid, Port

_GIB: Final = 1024**3
_TERMINATE_SECONDS: Final = 5.0
_STDERR_LIMIT: Final = 4096
_LOOK_SECONDS: Final = 0.2  # a revocation shows in the documents of running enclaves within this time
_CONSOLE_LOOK: Final = 65536  # a panic and its trace


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
        self._ended: asyncio.Future[End] = self._loop.create_future()
        self._stderr = bytearray()
        self._state = "EMPTY"
        self._console: Console | None = None
        self._started: datetime | None = None
        self._memory = GuestMemory()

    async def boot(self) -> dict[str, Any]:
        """Steps 1 to 4. On any error everything is undone before it is raised.

        Returns:
            The JSON of run-enclave, and a note about the pool.
        """
        try:
            return await self._boot()
        except BaseException:
            self.close()
            raise

    async def serve(self) -> None:
        """Step 5: wait until the enclave ends, and write down how it did."""
        end = await self._ended
        if end.cause is Cause.TERMINATED:
            self._stop_machine()
        console = None
        if self._console is not None:
            self._console.drain()
            console = self._console.tail()
        ended.save(self._paths, self._record, end, self._started, console)

    def terminate(self) -> None:
        """End the enclave; :meth:`serve` returns soon."""
        self._state = "TERMINATING"
        self._end(End(Cause.TERMINATED, "the enclave was terminated"))

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
        staging, held = registry.stage(self._paths)
        self._cleanups.callback(os.close, held)
        self._cleanups.callback(shutil.rmtree, staging, ignore_errors=True)
        self._image = prepare_boot(Path(self._request.eif_path), staging)
        qemu = find_qemu(self._paths.tools, self._paths.qemu_proof)
        accelerator = self._accelerator(qemu)
        self._parent = identity.ParentSource(self._paths, _LOOK_SECONDS)
        parent = self._parent.load()
        enclave_id = identity.new_enclave_id(parent.instance_id)
        self._record = self._reserve(enclave_id)
        self._files = self._paths.enclave(enclave_id)
        attester = Attester(parent, enclave_id)
        self._start_devices(attester)
        self._init = InitChannel(self._loop, self._listen(self._files.guest_port(HEARTBEAT_PORT)))
        self._cleanups.callback(self._init.close)
        clock = TimeService(self._loop, self._listen(self._files.guest_port(TIME_PORT)))
        self._cleanups.callback(clock.close)
        self._start_machine(self._spec(self._image, accelerator), qemu)
        isolation.forgo(self._paths, self._pool)
        if self._console is not None:
            await self._console.start()
        await self._wait_for_heartbeat()
        isolation.pin(self._pool, self._process.pid, self._record.cpu_ids)
        shutil.rmtree(staging, ignore_errors=True)
        self._state = "RUNNING"
        self._started = datetime.now(UTC)
        control = ControlServer(self._files.control, self._commands())
        await control.start()
        self._cleanups.callback(control.close)
        return run_result(self._record) | {"Note": isolation.pool_note(self._pool)}

    def _commands(self) -> dict[str, Command]:
        return {
            "describe": Command(self.describe, for_all=True),
            "terminate": Command(self._terminate_soon),
            "console": Command(self._console_text),
            "stats": Command(self.stats, for_all=True),
        }

    def _terminate_soon(self) -> dict[str, Any]:
        # the answer leaves first: the loop ends the enclave in a later turn
        self._loop.call_later(0.01, self.terminate)
        return {"Terminated": True}

    def _console_text(self) -> dict[str, Any]:
        return {"Console": self._console.tail().decode(errors="replace") if self._console else None}

    def stats(self) -> dict[str, Any]:
        """What `alcove top` shows: seconds of CPU, bytes, and counts since the start."""
        usage, vsock = tree_usage(self._process.pid), self._vsock.counters
        return {
            "CPUSeconds": usage.cpu_seconds,
            "ResidentBytes": usage.resident_bytes,
            "OpenConnections": vsock.open_now,
            "Connections": vsock.connections,
            "BytesFromEnclave": vsock.bytes_from_guest,
            "BytesToEnclave": vsock.bytes_to_guest,
            "NSMRequests": self._module.requests,
            "StartedAt": self._started.isoformat(timespec="seconds") if self._started else None,
        }

    def _accelerator(self, qemu: Qemu) -> Accelerator:
        tools = ToolsTree.load(self._paths.tools)
        accelerator, _ = choose_accelerator(
            qemu,
            self._request.accelerator,
            kernel=tools.kernel if tools else None,
            cache=self._paths.accelerator_proof,
        )
        return accelerator

    def _reserve(self, enclave_id: str) -> Record:
        request, image = self._request, self._image
        self._pool = pool = isolation.pool_of(self._paths)

        def decide(others: list[Record]) -> Record:
            taken = [other.allocation for other in others]
            allocation, self._memory = isolation.grant(pool, taken, request, image.size)
            return Record(
                enclave_id=enclave_id,
                name=registry.free_name(request.wanted_name, others),
                cid=registry.free_cid(request.enclave_cid, others),
                cpu_ids=allocation.cpu_ids,
                memory_mib=allocation.memory_mib,
                process_id=os.getpid(),
                debug_mode=request.debug_mode,
            )

        record, lock = registry.reserve(self._paths, enclave_id, decide)
        self._cleanups.callback(registry.release, self._paths, record, lock)
        return record

    def _start_devices(self, attester: Attester) -> None:
        record, files = self._record, self._files
        role, debug = self._request.parent_role, record.debug_mode
        pcrs = identity.initial_pcrs(self._image.measurements, attester.instance_id, debug_mode=debug, parent_role=role)

        def attest(locked: Any, user_data: bytes | None, nonce: bytes | None, public_key: bytes | None) -> bytes:
            now = datetime.now(UTC)
            attester.renew(self._parent.load, now=now, changed=self._parent.changed)
            return attester.document(locked, user_data=user_data, nonce=nonce, public_key=public_key, now=now)

        self._module = NsmModule(record.enclave_id, pcrs, attest, os.urandom)
        self._nsm = NsmBackend(self._loop, self._listen(files.nsm_device), self._module, self._device_closed("NSM"))
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
                self._end(End(Cause.MACHINE, f"the {name} device broke: {reason}"))

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
            memory=self._memory,
        )

    def _start_machine(self, spec: MachineSpec, qemu: Qemu) -> None:
        console_read = console_write = None
        if spec.console:
            console_read, console_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(console_write, True)
            self._console = Console(self._loop, console_read, self._files.console)
            self._cleanups.callback(self._console.close)
        confinement, undo = isolation.shut_off(self._pool, self._record, spec)
        self._cleanups.callback(undo)
        stderr_read, stderr_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(stderr_write, True)
        try:
            self._process = start(spec, qemu, console_fd=console_write, stderr_fd=stderr_write, confinement=confinement)
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
        console = b""
        if self._console is not None:
            self._console.drain()
            console = self._console.tail()[-_CONSOLE_LOOK:]
        self._end(ended.end_of(status, said[-1] if said else "", self._init.report, console))

    def _end(self, end: End) -> None:
        if not self._ended.done():
            self._ended.set_result(end)

    def _stop_machine(self) -> None:
        if self._process.poll() is None:
            # QEMU has nothing to save: the jail's first process is killed and its namespace goes with it
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_TERMINATE_SECONDS)

    async def _wait_for_heartbeat(self) -> None:
        seconds = self._request.boot_timeout or boot_timeout(self._image.size, self._record.memory_mib)
        beat = asyncio.ensure_future(self._init.heartbeat())
        either: set[asyncio.Future[Any]] = {beat, self._ended}
        done, _ = await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if beat in done:
            try:
                beat.result()
            except ProtocolError as error:
                raise MachineError(error.message, code="E36", hint=self._boot_hint()) from None
            return
        beat.cancel()
        if self._ended in done:
            reason = self._ended.result().reason
            raise MachineError(f"the enclave did not start: {reason}", code="E36", hint=self._boot_hint())
        raise MachineError(
            f"the enclave did not report that it is up within {seconds:.0f} s", code="E36", hint=self._boot_hint()
        )

    def _boot_hint(self) -> str:
        if self._console is None:
            return "start it with --debug-mode and look at the console"
        last = self._console.tail().decode(errors="replace").strip().splitlines()[-3:]
        return "the console ended with: " + " | ".join(last) if last else "the console stayed empty"


def run_result(record: Record) -> dict[str, Any]:
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
