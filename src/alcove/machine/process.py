"""Start QEMU in its jail.

1. What the jail binds in goes on a stage that QEMU's own user can see, where it has one (`stage`).
2. The new process takes on its user id, limits, CPUs and control group (`confinement`).
3. It executes bubblewrap, which builds the jail and executes QEMU (`jail`).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from alcove.errors import MachineError
from alcove.machine.accelerator import tsc_khz
from alcove.machine.argv import Qemu
from alcove.machine.confinement import Confinement
from alcove.machine.jail import JAIL_PROBE, jail_argv
from alcove.machine.spec import MachineSpec
from alcove.machine.stage import staged


def start(
    spec: MachineSpec,
    qemu: Qemu,
    *,
    console_fd: int | None,
    stderr_fd: int,
    confinement: Confinement | None = None,
) -> subprocess.Popen[bytes]:
    """Start the machine; both vhost-user sockets must be listening already (devices.md §2).

    The process is bubblewrap. It ends with QEMU's status when QEMU ends; QEMU ends when it is killed, and both end
    with the **thread** that called this function (PDEATHSIG's rule): call it from one that lives as long as they do.
    It must be the only thread, since the new process is prepared between fork and exec.

    Args:
        spec: The machine. Under TCG without a ``tsc_khz``, the host's is filled in.
        qemu: From ``find_qemu``.
        console_fd: Where the serial console goes when ``spec.console``; None discards it.
        stderr_fd: Where QEMU's and bubblewrap's complaints go.
        confinement: Who QEMU is and what it may use; None leaves both as they are here.

    Raises:
        MachineError: bubblewrap is missing or did not start.
    """
    if spec.accelerator == "tcg" and spec.tsc_khz is None:
        spec = dataclasses.replace(spec, tsc_khz=tsc_khz())
    if shutil.which("bwrap") is None:
        raise MachineError("bubblewrap is not installed", hint="apt-get install bubblewrap")
    confinement = confinement or Confinement()
    stage: dict[Path, Path] = {}
    if confinement.uid is not None:
        confinement.give(spec.kernel, spec.initrd, spec.nsm_socket, spec.vsock_socket)
        spec, qemu = _on_stage(spec, qemu, stage)
    with _Preparation(confinement, stage) as preparation:
        try:
            return subprocess.Popen(
                jail_argv(spec, qemu),
                stdin=subprocess.DEVNULL,
                stdout=console_fd if console_fd is not None else subprocess.DEVNULL,
                stderr=stderr_fd,
                close_fds=True,
                cwd="/",
                preexec_fn=preparation,  # noqa: PLW1509 - the docstring's last condition
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise MachineError(f"cannot start bubblewrap: {preparation.reason() or error}") from error


class _Preparation:
    """Enter a confinement between fork and exec, and let the parent know what went wrong there."""

    def __init__(self, confinement: Confinement, stage: Mapping[Path, Path]) -> None:
        self._confinement = confinement
        self._stage = stage
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._read)
        os.close(self._write)

    def __call__(self) -> None:
        try:
            self._confinement.enter(self._stage)
        except (OSError, ValueError) as error:
            os.write(self._write, str(error).encode()[:1024])
            raise

    def reason(self) -> str:
        """What the child said, or nothing."""
        try:
            return os.read(self._read, 1024).decode(errors="replace")
        except BlockingIOError:
            return ""


def _on_stage(spec: MachineSpec, qemu: Qemu, stage: dict[Path, Path]) -> tuple[MachineSpec, Qemu]:
    """The same machine and QEMU by their staged names, which are added to `stage`."""

    def put(file: Path) -> Path:
        name = staged(len(stage))
        stage[name] = file
        return name

    on_stage = dataclasses.replace(
        spec,
        kernel=put(spec.kernel),
        initrd=put(spec.initrd),
        nsm_socket=put(spec.nsm_socket),
        vsock_socket=put(spec.vsock_socket),
    )
    if qemu.loader is None or qemu.library_path is None:  # the system's, which every user can read
        return on_stage, qemu
    return on_stage, dataclasses.replace(
        qemu,
        binary=put(qemu.binary),
        loader=put(qemu.loader),
        library_path=put(qemu.library_path),
        module_dir=put(qemu.module_dir) if qemu.module_dir else None,
        firmware=tuple(put(directory) for directory in qemu.firmware),
    )


def jail_works(confinement: Confinement | None = None) -> str | None:
    """None when bubblewrap can build the jail on this host, for this user if one is given; else what it says."""
    with _Preparation(confinement or Confinement(), {}) as preparation:
        try:
            done = subprocess.run(
                JAIL_PROBE,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
                preexec_fn=preparation,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return preparation.reason() or str(error)
    return (done.stderr.strip() or f"status {done.returncode}") if done.returncode else None
