"""One process for each enclave: it starts the machine, serves its devices and ends with it.

The life of an enclave:

1. read the image, check it and unpack what boots (E19, E35, E59);
2. reserve name, CID, CPUs and memory (E20-E29): from here on the enclave is listed, and its socket takes questions;
3. prove who the parent is, and bind the sockets of the two devices, the heartbeat and the time;
4. start QEMU in its jail, and wait for the heartbeat, QEMU's end or the time-out, whichever is first (E36);
5. answer describe, console and terminate, as since step 4, until QEMU ends;
6. leave nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from alcove.attestation.attester import Attester
from alcove.devices.unix_path import listen
from alcove.enclave import ended, identity, isolation, registry
from alcove.enclave.config import RunRequest
from alcove.enclave.console import Console
from alcove.enclave.control import Command, ControlServer
from alcove.enclave.ended import Cause, End
from alcove.enclave.paths import EnclavePaths, Paths
from alcove.enclave.peripherals import Peripherals
from alcove.enclave.record import Record
from alcove.enclave.running_machine import RunningMachine
from alcove.enclave.usage import tree_usage
from alcove.errors import AlcoveError, MachineError, ProtocolError
from alcove.image.boot import BootFiles, prepare_boot
from alcove.image.sources.tools_tree import ToolsTree
from alcove.machine.accelerator import choose_accelerator
from alcove.machine.qemu import Qemu, find_qemu
from alcove.machine.spec import Accelerator, GuestMemory, MachineSpec
from alcove.types import Cid

_GIB: Final = 1024**3
_CONSOLE_SECONDS: Final = 1.0  # for those who watch it to take the end of it
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
        self._state = "TERMINATING"
        if end.cause is Cause.TERMINATED:
            self._machine.stop()
        if self._console is not None:
            await self._console.finish(_CONSOLE_SECONDS)
        console = self._console.tail() if self._console is not None else self._devices.last_words.text
        ended.save(self._paths, self._record, end, self._started, console)

    def terminate(self) -> None:
        """End the enclave; :meth:`serve` returns soon."""
        self._end(End(Cause.TERMINATED, "the enclave was terminated"))

    def close(self) -> None:
        """Step 6: end QEMU, close every socket, remove the runtime directory."""
        self._cleanups.close()

    def describe(self) -> dict[str, Any]:
        """This enclave's entry of describe-enclaves, image and metadata included, and a note about the pool."""
        record, boot = self._record, self._image
        return run_result(record) | {
            "State": self._state,
            "Flags": "DEBUG_MODE" if record.debug_mode else "NONE",
            "Measurements": boot.measurements.to_json(),
            "ImageName": boot.image_name,
            "ImageVersion": boot.image_version,
            "Metadata": boot.metadata,
            "Note": isolation.pool_note(self._pool),
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
        self._connect_devices(Attester(parent, enclave_id))
        self._start_machine(self._spec(self._image, accelerator), qemu)
        isolation.forgo(self._paths, self._pool)
        # only now is there all that may be asked about; those who found the enclave before have waited at its socket
        control = ControlServer(self._control, self._commands())
        self._cleanups.callback(control.close)
        await control.start()
        if self._console is not None:
            await self._console.start()
        await self._wait_for_heartbeat()
        isolation.pin(self._pool, self._machine.pid, self._record.cpu_ids)
        shutil.rmtree(staging, ignore_errors=True)
        self._state = "RUNNING"
        self._started = datetime.now(UTC)
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
        usage, vsock = tree_usage(self._machine.pid), self._devices.vsock
        return {
            "CPUSeconds": usage.cpu_seconds,
            "ResidentBytes": usage.resident_bytes,
            "OpenConnections": vsock.open_now,
            "Connections": vsock.connections,
            "BytesFromEnclave": vsock.bytes_from_guest,
            "BytesToEnclave": vsock.bytes_to_guest,
            "NSMRequests": self._devices.nsm_requests,
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

        def furnish(files: EnclavePaths) -> None:
            self._control: socket.socket = listen(files.control, mode=0o666)
            self._cleanups.callback(self._control.close)

        record, lock = registry.reserve(self._paths, enclave_id, decide, furnish)
        self._cleanups.callback(registry.release, self._paths, record, lock)
        return record

    def _connect_devices(self, attester: Attester) -> None:
        role, debug = self._request.parent_role, self._record.debug_mode
        pcrs = identity.initial_pcrs(self._image.measurements, attester.instance_id, debug_mode=debug, parent_role=role)
        self._devices = Peripherals(
            self._loop,
            self._paths,
            self._files,
            Cid(self._record.cid),
            pcrs=pcrs,
            attester=attester,
            parent=self._parent,
            on_broken=self._device_broke,
        )
        self._cleanups.callback(self._devices.close)

    def _device_broke(self, name: str, reason: str) -> None:
        self._end(End(Cause.MACHINE, f"the {name} device broke: {reason}"))

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
        if spec.console:
            self._console = Console(self._loop, self._files.console)
            self._cleanups.callback(self._console.close)
        confinement, undo = isolation.shut_off(self._pool, self._record, spec)
        self._cleanups.callback(undo)
        self._machine = RunningMachine(
            self._loop, spec, qemu, confinement, console=self._console, on_ended=self._machine_ended
        )
        self._cleanups.callback(self._machine.close)

    def _machine_ended(self, status: int, complaint: str) -> None:
        console = b""
        if self._console is not None:
            self._console.drain()
            console = self._console.tail()[-_CONSOLE_LOOK:]
        self._end(ended.end_of(status, complaint, self._devices.init.report, console))

    def _end(self, end: End) -> None:
        if not self._ended.done():
            self._ended.set_result(end)

    async def _wait_for_heartbeat(self) -> None:
        seconds = self._request.boot_timeout or boot_timeout(self._image.size, self._record.memory_mib)
        beat = asyncio.ensure_future(self._devices.init.heartbeat())
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
