"""The jail around QEMU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from alcove.machine.argv import Qemu
from alcove.machine.jail import jail_argv
from alcove.machine.spec import MachineSpec

GOLDEN = """
bwrap --unshare-all --unshare-user --uid 65534 --gid 65534 --die-with-parent --new-session --cap-drop ALL
--clearenv --hostname enclave
--ro-bind /t/qemu-system-x86_64 /qemu/qemu
--ro-bind /t/ld.so /qemu/loader
--ro-bind /t/lib /qemu/lib
--ro-bind /t/lib/qemu /qemu/modules
--ro-bind /t/share/qemu /qemu/firmware/0
--ro-bind /t/share/seabios /qemu/firmware/1
--ro-bind /t/boot/vmlinuz /boot/kernel
--ro-bind /r/initrd /boot/initrd
--ro-bind /r/nsm.sock /run/nsm.sock
--ro-bind /r/vsock.sock /run/vsock.sock
--setenv QEMU_MODULE_DIR /qemu/modules
--remount-ro /
--
/qemu/loader --library-path /qemu/lib /qemu/qemu -L /qemu/firmware/0 -L /qemu/firmware/1
""".split()  # noqa: SIM905 - one option a line reads best


def test_the_jail_is_the_checked_one(spec: MachineSpec, qemu: Qemu) -> None:
    """Every namespace, no capability, no environment, read-only views of the files that QEMU opens."""
    assert jail_argv(spec, qemu)[: len(GOLDEN)] == GOLDEN


def test_no_name_of_the_host_enters_the_jail(spec: MachineSpec, qemu: Qemu) -> None:
    """QEMU is told the inner names only."""
    argv = jail_argv(spec, qemu)
    inside = argv[argv.index("--") :]
    assert not [word for word in inside if "/t/" in word or "/r/" in word]
    assert "socket,id=nsm,path=/run/nsm.sock" in inside


def test_nothing_is_bound_writable(spec: MachineSpec, qemu: Qemu) -> None:
    """Not under TCG; under KVM only the device itself is."""
    assert {word for word in jail_argv(spec, qemu) if "bind" in word} == {"--ro-bind"}
    kvm = jail_argv(dataclasses.replace(spec, accelerator="kvm"), qemu)
    assert kvm[kvm.index("--dev-bind") + 1] == "/dev/kvm"


def test_a_system_qemu_sees_the_systems_libraries(spec: MachineSpec) -> None:
    """It was linked to find them where they are; nothing else of /usr is shown."""
    argv = jail_argv(spec, Qemu(Path("/usr/bin/qemu-system-x86_64"), None, None, None, (), (10, 2, 0)))
    sources = {argv[i + 1] for i, word in enumerate(argv) if word == "--ro-bind-try"}
    assert "/usr/lib" in sources
    assert "/usr" not in sources
    assert argv[argv.index("--") + 1] == "/usr/bin/qemu-system-x86_64"
