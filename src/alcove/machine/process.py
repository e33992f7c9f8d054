"""Start QEMU in its jail."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

from alcove.errors import MachineError
from alcove.machine.accelerator import tsc_khz
from alcove.machine.argv import Qemu
from alcove.machine.jail import JAIL_PROBE, jail_argv
from alcove.machine.spec import MachineSpec


def start(spec: MachineSpec, qemu: Qemu, *, console_fd: int | None, stderr_fd: int) -> subprocess.Popen[bytes]:
    """Start the machine; both vhost-user sockets must be listening already (devices.md §2).

    The process is bubblewrap. It ends with QEMU's status when QEMU ends; QEMU ends when it is killed, and both end
    with the **thread** that called this function (PDEATHSIG's rule): call it from one that lives as long as they do.

    Args:
        spec: The machine. Under TCG without a ``tsc_khz``, the host's is filled in.
        qemu: From ``find_qemu``.
        console_fd: Where the serial console goes when ``spec.console``; None discards it.
        stderr_fd: Where QEMU's and bubblewrap's complaints go.

    Raises:
        MachineError: bubblewrap is missing or did not start.
    """
    if spec.accelerator == "tcg" and spec.tsc_khz is None:
        spec = dataclasses.replace(spec, tsc_khz=tsc_khz())
    if shutil.which("bwrap") is None:
        raise MachineError("bubblewrap is not installed", hint="apt-get install bubblewrap")
    try:
        return subprocess.Popen(
            jail_argv(spec, qemu),
            stdin=subprocess.DEVNULL,
            stdout=console_fd if console_fd is not None else subprocess.DEVNULL,
            stderr=stderr_fd,
            close_fds=True,
        )
    except OSError as error:
        raise MachineError(f"cannot start bubblewrap: {error}") from error


def jail_works() -> str | None:
    """None when bubblewrap can build the jail on this host, else what it says."""
    done = subprocess.run(JAIL_PROBE, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or f"status {done.returncode}") if done.returncode else None
