"""A machine and a QEMU to describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from alcove.machine.argv import Qemu
from alcove.machine.spec import MachineSpec


@pytest.fixture
def spec() -> MachineSpec:
    return MachineSpec(
        kernel=Path("/t/boot/vmlinuz"),
        initrd=Path("/r/initrd"),
        cmdline="reboot=t panic=-1",
        cpu_count=2,
        memory_mib=256,
        accelerator="tcg",
        nsm_socket=Path("/r/nsm.sock"),
        vsock_socket=Path("/r/vsock.sock"),
        console=True,
        tsc_khz=2_596_135,
    )


@pytest.fixture
def qemu() -> Qemu:
    return Qemu(
        binary=Path("/t/qemu-system-x86_64"),
        loader=Path("/t/ld.so"),
        library_path=Path("/t/lib"),
        module_dir=Path("/t/lib/qemu"),
        firmware=(Path("/t/share/qemu"), Path("/t/share/seabios")),
        version=(11, 1, 3),
    )
