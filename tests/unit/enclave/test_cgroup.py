"""Control groups: on a file system that behaves as the kernel documents it, and on this machine's own."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from alcove.enclave.cgroup import Cgroups, GroupLimits, KernelFiles, find_mount
from alcove.errors import MachineError

ID = "i-0123456789abcdef0-enc0123456789abcdef"
LIMITS = GroupLimits(memory_mib=768, processes=66, cpus=2)
OWN = GroupLimits(memory_mib=768, processes=66, cpus=2, own_cpus=(2, 10), node=0)


FILES = {
    "cpuset": ("cpuset.cpus", "cpuset.mems", "cpuset.cpus.partition", "cpuset.cpus.exclusive"),
    "cpu": ("cpu.max",),
    "memory": ("memory.max",),  # and no memory.swap.max: a kernel without swap
    "pids": ("pids.max",),
}


class DocumentedKernel(KernelFiles):
    """cgroup-v2.rst in a directory: files come with a group, and partitions become valid or say why not."""

    def __init__(self, mount: Path, controllers: str, *, partition: str = "root", exclusive: bool = True) -> None:
        self.partition = partition
        self.exclusive = exclusive
        (mount / "cgroup.controllers").write_text(controllers)
        (mount / "cgroup.subtree_control").write_text("")

    def mkdir(self, path: Path) -> None:
        """With the interface files of a group."""
        if not path.exists():
            path.mkdir()
            for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.kill"):
                (path / name).write_text("")
            self._populate(path)

    def _populate(self, group: Path) -> None:
        for controller in (group.parent / "cgroup.subtree_control").read_text().split():
            for name in FILES[controller]:
                if (self.exclusive or name != "cpuset.cpus.exclusive") and not (group / name).exists():
                    (group / name).write_text("")

    def rmdir(self, path: Path) -> None:
        """Busy with processes or children in it."""
        if self.children(path) or (path / "cgroup.procs").read_text():
            raise OSError(errno.EBUSY, "busy", str(path))
        for child in path.iterdir():
            child.unlink()
        path.rmdir()

    def write(self, path: Path, text: str) -> None:
        """With the side effects that a group's files have."""
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "not there", str(path))
        if path.name == "cgroup.subtree_control":
            path.write_text(f"{path.read_text()} {text.removeprefix('+')}")
            for child in self.children(path.parent):
                self._populate(child)
        elif path.name == "cpuset.cpus.partition" and text == "root":
            path.write_text(self.partition)
        elif path.name == "cgroup.kill":
            (path.parent / "cgroup.procs").write_text("")
        else:
            path.write_text(text)


def groups(mount: Path, controllers: str = "cpuset cpu io memory pids", **kernel: object) -> Cgroups:
    return Cgroups(mount, DocumentedKernel(mount, controllers, **kernel))  # type: ignore[arg-type]


def test_an_enclave_is_bounded(tmp_path: Path) -> None:
    """Memory, processes and time of the CPUs, by the controllers that there are."""
    group = groups(tmp_path).make(ID, LIMITS)
    assert (group / "memory.max").read_text() == str(768 << 20)
    assert (group / "pids.max").read_text() == "66"
    assert (group / "cpu.max").read_text() == "300000 100000"


def test_without_controllers_there_is_still_a_group(tmp_path: Path) -> None:
    """Where the version 1 hierarchies hold them; the group can at least end all that is in it."""
    made = groups(tmp_path, "")
    assert made.make(ID, LIMITS).is_dir()
    assert "no cpuset controller" in str(made.exclusive_obstacle())


@pytest.mark.parametrize("exclusive", [True, False])
def test_exclusive_cpus_are_a_partition(tmp_path: Path, exclusive: bool) -> None:
    """The pool is a partition root, on kernels with and without cpuset.cpus.exclusive; the enclave has its part."""
    made = groups(tmp_path, exclusive=exclusive)
    group = made.make(ID, OWN, pool=(2, 3, 10, 11))
    assert (made.top / "cpuset.cpus").read_text() == "2,3,10,11"
    assert (made.top / "cpuset.cpus.partition").read_text() == "root"
    assert (group / "cpuset.cpus").read_text() == "2,10"
    assert (group / "cpuset.mems").read_text() == "0"
    if exclusive:
        assert (made.top / "cpuset.cpus.exclusive").read_text() == "2,3,10,11"


def test_an_invalid_partition_is_an_error_with_the_kernels_reason(tmp_path: Path) -> None:
    """The kernel accepts the word and makes it invalid; that is read back, and nothing is left."""
    made = groups(tmp_path, partition="root invalid (Cpu list in cpuset.cpus not exclusive)")
    with pytest.raises(MachineError, match="not exclusive") as caught:
        made.make(ID, OWN, pool=(2, 3))
    assert caught.value.code == "E29"
    assert not made.group(ID).exists()
    assert (made.top / "cpuset.cpus.partition").read_text() == "member"


def test_the_last_enclave_gives_the_cpus_back(tmp_path: Path) -> None:
    """The partition holds while any enclave runs."""
    made = groups(tmp_path)
    for name in ("a", "b"):
        (made.make(name, OWN, pool=(2, 10)) / "cgroup.procs").write_text("1234")
    made.remove("a")
    assert (made.top / "cpuset.cpus.partition").read_text() == "root"
    made.remove("b")
    assert (made.top / "cpuset.cpus.partition").read_text() == "member"
    assert not [child for child in made.top.iterdir() if child.is_dir()]


def test_a_limit_that_exclusive_mode_rests_on_must_be_set(tmp_path: Path) -> None:
    """Without cpuset files an enclave would share its CPUs: no group, and an error."""
    made = groups(tmp_path, "memory")
    with pytest.raises(MachineError, match="control group"):
        made.make(ID, OWN)
    assert not made.group(ID).exists()


def test_the_mount_is_found_among_others() -> None:
    """Unified, hybrid and version 1 machines."""
    hybrid = "cgroup /sys/fs/cgroup/pids cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    assert find_mount(hybrid) == Path("/sys/fs/cgroup/unified")
    assert find_mount("cgroup /sys/fs/cgroup/pids cgroup rw 0 0\n") is None
    assert "no version 2 hierarchy" in str(Cgroups(None).obstacle())
    assert Cgroups(None).controllers() == frozenset()


def test_on_this_machine_a_group_ends_what_is_in_it() -> None:
    """The real kernel: a process is put in, the group is removed, the process is gone."""
    here = Cgroups.of_this_machine()
    if why := here.obstacle():
        pytest.skip(why)
    name = f"test-{os.getpid()}"
    group = here.make(name, LIMITS)
    with subprocess.Popen(["sleep", "60"]) as process:
        (group / "cgroup.procs").write_text(str(process.pid))
        assert (group / "cgroup.procs").read_text().split() == [str(process.pid)]
        here.remove(name)
        assert process.wait(60) == -9
    assert not group.exists()
