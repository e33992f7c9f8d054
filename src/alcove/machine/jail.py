"""The jail around QEMU: a bubblewrap command line.

Core: a command's needs in, a list of arguments out.

Inside there is no network, no other process, no capability, no environment, and a read-only view of exactly the files
that QEMU opens (devices.md §2.2). They appear under fixed names, so a guest that breaks out of QEMU does not
even learn where on the host its files are.

QEMU's user inside is nobody (65534). Outside it is a user id of its own where root starts it and the kernel allows such
a user to make namespaces (`confinement`), else whoever starts it; with every capability dropped in either case.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from alcove.machine.argv import Qemu, qemu_argv
from alcove.machine.spec import MachineSpec

_NOBODY: Final = "65534"
_HOME: Final = Path("/qemu")
_KERNEL, _INITRD = Path("/boot/kernel"), Path("/boot/initrd")
_NSM, _VSOCK = Path("/run/nsm.sock"), Path("/run/vsock.sock")
_SYSTEM_DIRECTORIES: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/qemu", "/usr/share/seabios")

_ISOLATION: Final = (
    "bwrap",
    "--unshare-all",  # user, mount, pid, network, ipc, uts and cgroup namespaces
    "--unshare-user",  # --unshare-all only tries this one
    "--uid", _NOBODY, "--gid", _NOBODY,
    "--die-with-parent",
    "--new-session",  # no terminal to push characters into
    "--cap-drop", "ALL",
    "--clearenv",
    "--hostname", "enclave",
)  # fmt: skip

# The same isolation around a program that does nothing: does this host allow it?
JAIL_PROBE: Final = (*_ISOLATION, "--ro-bind", "/", "/", "--", "true")


def jail_argv(spec: MachineSpec, qemu: Qemu) -> list[str]:
    """The whole command: bubblewrap, what is bound in, and QEMU on the names inside."""
    inner = dataclasses.replace(spec, kernel=_KERNEL, initrd=_INITRD, nsm_socket=_NSM, vsock_socket=_VSOCK)
    files = {_KERNEL: spec.kernel, _INITRD: spec.initrd, _NSM: spec.nsm_socket, _VSOCK: spec.vsock_socket}
    home, inner_qemu = _qemu_inside(qemu)
    return [
        *_ISOLATION,
        *home,
        *(word for inside, outside in files.items() for word in ("--ro-bind", str(outside), str(inside))),
        *(("--dev-bind", "/dev/kvm", "/dev/kvm") if spec.accelerator == "kvm" else ()),
        *(word for name, value in inner_qemu.environment.items() for word in ("--setenv", name, value)),
        "--remount-ro", "/",
        "--",
        *qemu_argv(inner, inner_qemu),
    ]  # fmt: skip


def _qemu_inside(qemu: Qemu) -> tuple[list[str], Qemu]:
    """What to bind so that QEMU starts, and the same QEMU by its names inside."""
    if qemu.loader is None or qemu.library_path is None:  # the system's: where it was linked to be
        binds = [word for name in _SYSTEM_DIRECTORIES for word in ("--ro-bind-try", name, name)]
        return [*binds, "--ro-bind", str(qemu.binary), str(qemu.binary)], qemu
    firmware = tuple(_HOME / "firmware" / str(number) for number in range(len(qemu.firmware)))
    inside = Qemu(
        binary=_HOME / "qemu",
        loader=_HOME / "loader",
        library_path=_HOME / "lib",
        module_dir=_HOME / "modules",
        firmware=firmware,
        version=qemu.version,
    )
    pairs: list[tuple[Path | None, Path | None]] = [
        (qemu.binary, inside.binary),
        (qemu.loader, inside.loader),
        (qemu.library_path, inside.library_path),
        (qemu.module_dir, inside.module_dir),
        *zip(qemu.firmware, firmware, strict=True),
    ]
    return [word for outside, name in pairs if outside for word in ("--ro-bind", str(outside), str(name))], inside
