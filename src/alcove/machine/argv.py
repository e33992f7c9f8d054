"""QEMU's command line.

Core: a machine and a QEMU in, a list of arguments out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alcove.machine.spec import Accelerator, MachineSpec

VIRTIO_ID_NSM: Final = 33
NSM_QUEUE_SIZE: Final = 2  # one request and one response buffer (devices.md §1.3)
SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_TRANSLATION_MIB: Final = 256  # TCG's code buffer; its default of 1 GiB is much beside a small guest
_ACCELERATORS: Final[dict[Accelerator, tuple[str, str]]] = {
    "kvm": ("kvm", "host"),
    "tcg": (f"tcg,thread=multi,tb-size={_TRANSLATION_MIB}", "max"),
}


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU that can host an enclave.

    Args:
        binary: qemu-system-x86_64.
        loader: Its own dynamic loader, when it comes from a tools tree; None for the system's QEMU.
        library_path: Directory of its libraries, or None.
        module_dir: Directory of its modules, or None.
        firmware: Directories to search for firmware; empty when QEMU knows its own.
        version: (major, minor, micro).
    """

    binary: Path
    loader: Path | None
    library_path: Path | None
    module_dir: Path | None
    firmware: tuple[Path, ...]
    version: tuple[int, int, int]

    @property
    def command(self) -> list[str]:
        """How to start it: by its own loader with its own libraries when it has them, and with its firmware."""
        start = [str(self.binary)]
        if self.loader is not None:
            start = [str(self.loader), "--library-path", str(self.library_path), str(self.binary)]
        return start + [word for directory in self.firmware for word in ("-L", str(directory))]

    @property
    def environment(self) -> dict[str, str]:
        """The variables it needs, and all that it gets."""
        return {"QEMU_MODULE_DIR": str(self.module_dir)} if self.module_dir else {}


def _escaped(path: Path) -> str:
    """A path inside one of QEMU's comma-separated options."""
    return str(path).replace(",", ",,")


def qemu_argv(spec: MachineSpec, qemu: Qemu) -> list[str]:
    """The whole command (devices.md §2): microvm, two vhost-user devices, no network, no disk, no monitor."""
    accelerator, cpu = _ACCELERATORS[spec.accelerator]
    return [
        *qemu.command,
        "-name", "enclave,debug-threads=on",  # names the threads, so that vCPUs can be told apart and pinned
        # guest memory is secret: keep it out of core files, and let no other process's pages be compared with it
        "-M", "microvm,memory-backend=mem,dump-guest-core=off,mem-merge=off",
        "-accel", accelerator, "-cpu", cpu, "-smp", str(spec.cpu_count), "-m", f"{spec.memory_mib}M",
        # share=on: the device back-ends map this memory; without it requests hang (devices.md §2)
        # sealed by default: the back-ends refuse memory that could be taken away from under them
        "-object", f"memory-backend-memfd,id=mem,size={spec.memory_mib}M,share=on{_pages(spec)}",
        *(("-overcommit", "mem-lock=on") if spec.memory.locked else ()),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        *_console(spec),
        "-global", "virtio-mmio.force-legacy=false",
        "-kernel", str(spec.kernel), "-initrd", str(spec.initrd), "-append", spec.guest_cmdline,
        "-chardev", f"socket,id=nsm,path={_escaped(spec.nsm_socket)}",
        "-device", f"vhost-user-test-device,chardev=nsm,virtio-id={VIRTIO_ID_NSM},num_vqs=1,vq_size={NSM_QUEUE_SIZE}",
        "-chardev", f"socket,id=vsock,path={_escaped(spec.vsock_socket)}",
        "-device", "vhost-user-vsock-device,chardev=vsock",
        "-sandbox", SANDBOX,
    ]  # fmt: skip


def _pages(spec: MachineSpec) -> str:
    return f",hugetlb=on,hugetlbsize={spec.memory.page_mib}M" if spec.memory.page_mib else ""


def _console(spec: MachineSpec) -> list[str]:
    if not spec.console:
        return ["-serial", "null"]
    return ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]


def probe_argv(qemu: Qemu, kernel: Path, accelerator: Accelerator) -> list[str]:
    """A machine without devices or ramdisk: its kernel says hello, finds no root and ends. Proves an accelerator."""
    name, cpu = _ACCELERATORS[accelerator]
    return [
        *qemu.command,
        "-M", "microvm", "-accel", name, "-cpu", cpu, "-m", "128M",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-kernel", str(kernel), "-append", "console=ttyS0 reboot=t panic=-1",
    ]  # fmt: skip
