"""QEMU's command line and the machine it describes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from alcove.errors import UsageError
from alcove.machine.argv import Qemu, probe_argv, qemu_argv
from alcove.machine.spec import GuestMemory, MachineSpec

GOLDEN = """
/t/ld.so --library-path /t/lib /t/qemu-system-x86_64 -L /t/share/qemu -L /t/share/seabios
-name enclave,debug-threads=on
-M microvm,memory-backend=mem,dump-guest-core=off,mem-merge=off
-accel tcg,thread=multi,tb-size=256 -cpu max -smp 2 -m 256M
-object memory-backend-memfd,id=mem,size=256M,share=on
-nodefaults -no-user-config -display none -no-reboot
-chardev stdio,id=console,signal=off -serial chardev:console
-global virtio-mmio.force-legacy=false
-kernel /t/boot/vmlinuz -initrd /r/initrd -append CMDLINE
-chardev socket,id=nsm,path=/r/nsm.sock
-device vhost-user-test-device,chardev=nsm,virtio-id=33,num_vqs=1,vq_size=2
-chardev socket,id=vsock,path=/r/vsock.sock
-device vhost-user-vsock-device,chardev=vsock
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
""".split()  # noqa: SIM905 - one option a line reads best


def after(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_the_command_line_is_the_measured_one(spec: MachineSpec, qemu: Qemu) -> None:
    """Word by word, the command line of devices.md §2; the kernel's line is one argument."""
    line = "reboot=t panic=-1 tsc_early_khz=2596135 tsc=reliable"
    expected = [line if word == "CMDLINE" else word for word in GOLDEN]
    assert qemu_argv(spec, qemu) == expected


def test_under_kvm_the_guest_gets_the_measured_command_line_and_the_hosts_cpu(spec: MachineSpec, qemu: Qemu) -> None:
    """Only TCG needs to be told the counter's rate."""
    argv = qemu_argv(dataclasses.replace(spec, accelerator="kvm"), qemu)
    assert after(argv, "-append") == spec.cmdline
    assert (after(argv, "-accel"), after(argv, "-cpu")) == ("kvm", "host")


def test_without_a_console_nothing_of_the_guest_is_shown(spec: MachineSpec, qemu: Qemu) -> None:
    """An enclave that is not in debug mode has no console at all."""
    argv = qemu_argv(dataclasses.replace(spec, console=False), qemu)
    assert after(argv, "-serial") == "null"
    assert not [word for word in argv if "stdio" in word]


def test_a_system_qemu_starts_by_itself(spec: MachineSpec, qemu: Qemu) -> None:
    """It has the host's loader, libraries and firmware, and needs no variable."""
    system = Qemu(Path("/usr/bin/qemu-system-x86_64"), None, None, None, (), (10, 2, 0))
    assert qemu_argv(spec, system)[:2] == ["/usr/bin/qemu-system-x86_64", "-name"]
    assert system.environment == {}
    assert qemu.environment == {"QEMU_MODULE_DIR": "/t/lib/qemu"}


def test_a_comma_in_a_sockets_path_does_not_end_the_option(spec: MachineSpec, qemu: Qemu) -> None:
    """QEMU doubles commas to escape them."""
    argv = qemu_argv(dataclasses.replace(spec, nsm_socket=Path("/r/a,server=on")), qemu)
    assert "socket,id=nsm,path=/r/a,,server=on" in argv


def test_exclusive_memory_is_huge_pages_or_locked(spec: MachineSpec, qemu: Qemu) -> None:
    """QEMU gets the size of the pages, or locks what it has; it shares the memory in both cases."""
    huge = qemu_argv(dataclasses.replace(spec, memory=GuestMemory(page_mib=2)), qemu)
    assert after(huge, "-object") == "memory-backend-memfd,id=mem,size=256M,share=on,hugetlb=on,hugetlbsize=2M"
    assert "-overcommit" not in huge
    locked = qemu_argv(dataclasses.replace(spec, memory=GuestMemory(locked=True)), qemu)
    assert after(locked, "-overcommit") == "mem-lock=on"
    assert "hugetlb" not in after(locked, "-object")


def test_a_probe_has_no_devices(qemu: Qemu) -> None:
    """The proof of an accelerator needs a kernel only."""
    argv = probe_argv(qemu, Path("/k"), "kvm")
    assert after(argv, "-kernel") == "/k"
    assert "-initrd" not in argv
    assert "-device" not in argv


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_count": 0},
        {"cpu_count": 289},
        {"memory_mib": 63},
        {"memory_mib": 255, "memory": GuestMemory(page_mib=2)},
        {"cmdline": "a\0b"},
        {"cmdline": "x" * 2040},  # leaves no room for the counter's rate
        {"nsm_socket": Path("/" + "x" * 107)},
        {"vsock_socket": Path("/" + "x" * 107)},
    ],
)
def test_an_impossible_machine_cannot_be_described(spec: MachineSpec, change: dict[str, Any]) -> None:
    """Numbers out of range, and texts that the kernel or the system would cut, are refused at once."""
    with pytest.raises(UsageError):
        dataclasses.replace(spec, **change)
