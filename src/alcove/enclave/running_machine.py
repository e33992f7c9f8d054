"""QEMU as its supervisor has it: started in its jail, listened to, watched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Final

from alcove.enclave.console import Console
from alcove.machine.confinement import Confinement
from alcove.machine.process import start
from alcove.machine.qemu import Qemu
from alcove.machine.spec import MachineSpec

_STDERR_LIMIT: Final = 4096
_STOP_SECONDS: Final = 5.0

OnEnded = Callable[[int, str], None]
"""Called once when QEMU ends: the jail's status as `subprocess` gives it, and QEMU's last line on standard error."""


class RunningMachine:
    """One QEMU; it starts here.

    Args:
        loop: The supervisor's loop, in the only thread.
        spec: The machine.
        qemu: From ``find_qemu``.
        confinement: Who QEMU is and what it may use.
        console: Hears the serial port, when the machine has one; it is closed by its owner.
        on_ended: Called in the loop when it has ended.

    Raises:
        MachineError: As :func:`alcove.machine.process.start`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        spec: MachineSpec,
        qemu: Qemu,
        confinement: Confinement,
        *,
        console: Console | None,
        on_ended: OnEnded,
    ) -> None:
        self._loop = loop
        self._on_ended = on_ended
        self._stderr = bytearray()
        self._readers: list[int] = []
        stderr_read, stderr_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(stderr_write, True)
        console_write = console.take_input() if console is not None else None
        try:
            self._process = start(spec, qemu, console_fd=console_write, stderr_fd=stderr_write, confinement=confinement)
        except BaseException:
            os.close(stderr_read)
            raise
        finally:
            os.close(stderr_write)
            if console_write is not None:
                os.close(console_write)
        self._watch(stderr_read, self._read_stderr)
        self._watch(os.pidfd_open(self._process.pid), self._ended)

    @property
    def pid(self) -> int:
        """Of the jail's outermost process."""
        return self._process.pid

    def stop(self) -> None:
        """End it, unless it has ended."""
        if self._process.poll() is None:
            # QEMU has nothing to save: the jail's first process is killed and its namespace goes with it
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)

    def close(self) -> None:
        """End it, and listen no more."""
        for descriptor in self._readers:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._readers.clear()
        self.stop()

    def _watch(self, descriptor: int, callback: Callable[[int], None]) -> None:
        self._loop.add_reader(descriptor, callback, descriptor)
        self._readers.append(descriptor)

    def _read_stderr(self, descriptor: int) -> None:
        chunk = os.read(descriptor, _STDERR_LIMIT)
        if not chunk:
            self._loop.remove_reader(descriptor)
        if len(self._stderr) < _STDERR_LIMIT:
            self._stderr += chunk

    def _ended(self, watch: int) -> None:
        self._loop.remove_reader(watch)
        said = self._stderr.decode(errors="replace").strip().splitlines()
        self._on_ended(self._process.wait(), said[-1] if said else "")
