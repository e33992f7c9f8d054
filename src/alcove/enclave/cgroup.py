"""Control groups (version 2): an enclave's limits, and in exclusive mode the CPUs that are nobody else's.

    <cgroup2>/alcove/            in exclusive mode a cpuset partition with the pool's CPUs: the kernel keeps every
                                 other process off them (Documentation/admin-guide/cgroup-v2.rst, "Cpuset")
    <cgroup2>/alcove/<id>/       one enclave's QEMU, with its memory, processes and CPUs bounded

A group is made before QEMU starts, by root, and goes with the enclave. After the last one the partition gives its CPUs
back; its empty group stays, since the supervisor has given up the right to remove it.
Without root, or without a controller, there is less, and :meth:`Cgroups.obstacle` says what and why.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from alcove.errors import MachineError

_NAME: Final = "alcove"
_WANTED: Final = ("cpuset", "cpu", "memory", "pids")
_EMPTY_SECONDS: Final = 5.0
_MIB: Final = 1024 * 1024


class Files(Protocol):
    """How a control group file system is used; the kernel's is :class:`KernelFiles`."""

    def mkdir(self, path: Path) -> None:
        """Make a group."""

    def rmdir(self, path: Path) -> None:
        """Remove a group without processes and children."""

    def children(self, path: Path) -> list[Path]:
        """The groups below a group."""

    def read(self, path: Path) -> str:
        """A file's content without the space around it."""

    def write(self, path: Path, text: str) -> None:
        """Write to a file in one piece."""


class KernelFiles:
    """The kernel's own."""

    def mkdir(self, path: Path) -> None:
        """Make a group; one that is there will do."""
        path.mkdir(mode=0o755, exist_ok=True)

    def rmdir(self, path: Path) -> None:
        """Remove a group."""
        path.rmdir()

    def children(self, path: Path) -> list[Path]:
        """The groups below a group."""
        return [child for child in path.iterdir() if child.is_dir()]

    def read(self, path: Path) -> str:
        """A file's content."""
        return path.read_text().strip()

    def write(self, path: Path, text: str) -> None:
        """Write, but never make a file: what is not there is not supported."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """What one enclave's QEMU may use.

    Args:
        memory_mib: The guest's memory and QEMU's own.
        processes: Processes and threads.
        cpus: How many CPUs' worth of time.
        own_cpus: The CPUs of its own, in exclusive mode.
        node: The NUMA node of these CPUs, where its memory is to be; None for any.
    """

    memory_mib: int
    processes: int
    cpus: int
    own_cpus: tuple[int, ...] | None = None
    node: int | None = None

    def files(self) -> Iterator[tuple[str, str, str, bool]]:
        """Controller, file, content, and whether exclusive mode is broken without it."""
        if self.own_cpus is not None:
            yield "cpuset", "cpuset.cpus", cpu_list(self.own_cpus), True
            if self.node is not None:
                yield "cpuset", "cpuset.mems", str(self.node), True
            yield "memory", "memory.swap.max", "0", False  # its own memory; the guest's is locked or in huge pages
        else:
            yield "cpu", "cpu.max", f"{(self.cpus + 1) * 100_000} 100000", False  # one more for the devices' side
        yield "memory", "memory.max", str(self.memory_mib * _MIB), False
        yield "pids", "pids.max", str(self.processes), False


def cpu_list(cpus: tuple[int, ...]) -> str:
    """The kernel's list form."""
    return ",".join(map(str, sorted(cpus)))


def find_mount(mounts: str) -> Path | None:
    """Where the version 2 hierarchy is, from the text of ``/proc/self/mounts``."""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2":
            return Path(fields[1])
    return None


class Cgroups:
    """The groups of all enclaves of this machine.

    Args:
        mount: Where the version 2 hierarchy is mounted, or None.
        files: How it is read and written.
    """

    def __init__(self, mount: Path | None, files: Files | None = None) -> None:
        self.mount = mount
        self._files = files or KernelFiles()

    @classmethod
    def of_this_machine(cls) -> Cgroups:
        """As mounted here."""
        return cls(find_mount(Path("/proc/self/mounts").read_text()))

    @property
    def top(self) -> Path:
        """The group of all enclaves."""
        assert self.mount is not None  # noqa: S101 - every caller has asked `obstacle` first
        return self.mount / _NAME

    def group(self, enclave_id: str) -> Path:
        """The directory of one enclave's group."""
        return self.top / enclave_id

    def obstacle(self) -> str | None:
        """Why no group can be made at all, or None."""
        if self.mount is None:
            return "no version 2 hierarchy of control groups is mounted"
        if os.geteuid() != 0:
            return "only root can make control groups here"
        if not os.access(self.mount, os.W_OK):
            return f"{self.mount} is read-only"
        return None

    def controllers(self) -> frozenset[str]:
        """Those that groups can have here; the empty set when the version 1 hierarchies hold them."""
        if self.mount is None:
            return frozenset()
        with contextlib.suppress(OSError):
            return frozenset(self._files.read(self.mount / "cgroup.controllers").split()) & set(_WANTED)
        return frozenset()

    def exclusive_obstacle(self) -> str | None:
        """Why CPUs cannot be made an enclave's own, as far as can be told without trying; or None."""
        if why := self.obstacle():
            return why
        if "cpuset" not in self.controllers():
            return "the version 2 hierarchy of control groups has no cpuset controller here"
        return None

    def make(self, enclave_id: str, limits: GroupLimits, *, pool: tuple[int, ...] | None = None) -> Path:
        """One enclave's group; a process joins it by writing 0 to its ``cgroup.procs``.

        Args:
            enclave_id: The enclave.
            limits: What it may use.
            pool: In exclusive mode, the CPUs that nothing else on the machine may use.

        Raises:
            MachineError: E29 when the group cannot be made, the kernel does not give these CPUs away, or a limit that
                exclusive mode rests on cannot be set.
        """
        group = self.group(enclave_id)
        try:
            self._files.mkdir(self.top)
            with self._locked():
                enabled = self._enable()
                self._files.mkdir(group)
                if pool is not None:
                    self._hold(cpu_list(pool))
            for controller, name, content, needed in limits.files():
                if controller in enabled or needed:
                    self._set(group / name, content, needed=needed)
        except OSError as error:
            self.remove(enclave_id)
            raise MachineError(
                f"cannot make the control group `{group}`: {error.strerror} ({error.filename})",
                code="E29",
                hint="look at `alcove doctor`",
            ) from None
        except MachineError:
            self.remove(enclave_id)
            raise
        return group

    def _hold(self, cpus: str) -> None:
        """Make the partition; the kernel's answer is read back, since an invalid one is no error of `write`."""
        state = self.top / "cpuset.cpus.partition"
        try:
            self._files.write(self.top / "cpuset.cpus", cpus)
            with contextlib.suppress(FileNotFoundError):  # from Linux 6.7; before, a partition's are exclusive anyway
                self._files.write(self.top / "cpuset.cpus.exclusive", cpus)
            if self._files.read(state) != "root":
                self._files.write(state, "root")
            answer = self._files.read(state)
        except OSError as error:
            answer = f"{error.strerror} ({error.filename})"
        if answer != "root":
            raise MachineError(
                f"the CPUs {cpus} cannot be taken from the rest of the machine: {answer}",
                code="E29",
                hint="name others in `cpu_pool`, or set `mode: shared` in allocator.yaml",
            )

    def _set(self, file: Path, content: str, *, needed: bool) -> None:
        try:
            self._files.write(file, content)
        except FileNotFoundError:  # a kernel without swap has no memory.swap.max
            if needed:
                raise

    def remove(self, enclave_id: str) -> None:
        """End whatever is left in an enclave's group and remove it; after the last, the CPUs go back to the machine."""
        if self.mount is None:
            return
        group = self.group(enclave_id)
        with contextlib.suppress(OSError):  # from Linux 5.14; QEMU ends with its supervisor without it
            self._files.write(group / "cgroup.kill", "1")
        deadline = time.monotonic() + _EMPTY_SECONDS
        while self._busy(group) and time.monotonic() < deadline:
            time.sleep(0.005)
        with contextlib.suppress(OSError), self._locked():
            self._let_go()

    def _busy(self, group: Path) -> bool:
        """Try to remove it; whether processes on their way out are in the way."""
        try:
            self._files.rmdir(group)
        except OSError as error:
            return error.errno == errno.EBUSY
        return False

    def _enable(self) -> frozenset[str]:
        """Give the groups of enclaves the controllers that there are; those that they have."""
        assert self.mount is not None  # noqa: S101 - as above
        for group in (self.mount, self.top):
            for controller in sorted(self.controllers()):
                with contextlib.suppress(OSError):  # such as cpu, while a process of real-time priority runs
                    self._files.write(group / "cgroup.subtree_control", f"+{controller}")
        return frozenset(self._files.read(self.top / "cgroup.subtree_control").split())

    def _let_go(self) -> None:
        if not self._files.children(self.top):
            self._files.write(self.top / "cpuset.cpus.partition", "member")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """While nobody else makes or removes groups here: enclaves of several runtime directories share them."""
        descriptor = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
