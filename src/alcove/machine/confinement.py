"""Who QEMU is outside its jail, and how much it may use: set on the process before the jail is built.

Started by root, every enclave's QEMU has a user id of its own that nothing else on the machine has, so no enclave
and no program of the parent can signal it, trace it or read its memory, and it can reach nobody's files.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from alcove.machine import linux
from alcove.machine.spec import MachineSpec
from alcove.machine.stage import set_stage

FIRST_UID: Final = 0x70000000  # 1879048192 to 2147483647: used by nobody (systemd, "Users, Groups, UIDs and GIDs")
_UID_BITS: Final = 28
_MIB: Final = 1024 * 1024
OTHER_THREADS: Final = 64  # QEMU's main loop, RCU and worker threads, and bubblewrap's two processes
_DESCRIPTORS: Final = 256
_PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h


def own_uid(enclave_id: str) -> int:
    """The user id of an enclave's QEMU: the last 28 of the 64 random bits in its id."""
    return FIRST_UID | int(enclave_id[-16:], 16) & ((1 << _UID_BITS) - 1)


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds for QEMU and its jail from their first instruction.

    Args:
        uid: User and group id to become; None stays who starts it.
        groups: Further groups: that of `/dev/kvm` under KVM.
        limits: Resource limits, soft and hard alike.
        cpus: CPUs that its threads may use; None for all.
        cgroup: Control group to be in, or None.
    """

    uid: int | None = None
    groups: tuple[int, ...] = ()
    limits: Mapping[int, int] = field(default_factory=dict)
    cpus: tuple[int, ...] | None = None
    cgroup: Path | None = None

    def enter(self, stage: Mapping[Path, Path]) -> None:
        """Become it. In a new process, before it executes the jail.

        Raises:
            OSError: The kernel refused something.
        """
        if self.cgroup is not None:
            (self.cgroup / "cgroup.procs").write_text("0")
        if self.cpus is not None:
            os.sched_setaffinity(0, self.cpus)
        if self.uid is not None:
            set_stage(stage)
        for kind, value in self.limits.items():
            _lower(kind, value)
        if self.uid is not None:
            os.setgroups(self.groups)
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        linux.prctl(_PR_SET_NO_NEW_PRIVS, 1)

    def give(self, *files: Path) -> None:
        """Make files QEMU's own, and readable to nobody else but root."""
        if self.uid is not None:
            for file in files:
                os.chown(file, self.uid, self.uid)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if kind != resource.RLIMIT_MEMLOCK and hard != resource.RLIM_INFINITY:  # only that one is ever raised
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def limits(spec: MachineSpec, *, alone: bool) -> dict[int, int]:
    """Resource limits of a machine's QEMU.

    Args:
        spec: The machine.
        alone: Whether its user id is its own, so that a limit per user counts this enclave only.
    """
    found = {
        resource.RLIMIT_CORE: 0,  # where the kernel pipes cores to a program, only dump-guest-core=off helps
        resource.RLIMIT_FSIZE: spec.memory_mib * _MIB,  # the guest's memory is a file too, and the largest
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NOFILE: _DESCRIPTORS + 2 * spec.cpu_count,
    }
    if alone:
        found[resource.RLIMIT_NPROC] = spec.cpu_count + OTHER_THREADS
    if spec.memory.locked:
        found[resource.RLIMIT_MEMLOCK] = resource.RLIM_INFINITY
    return found


def kvm_groups() -> tuple[int, ...]:
    """The group that may use ``/dev/kvm``, for a user that is in no group."""
    with contextlib.suppress(OSError):
        return (Path("/dev/kvm").stat().st_gid,)
    return ()
