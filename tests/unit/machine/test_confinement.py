"""Who QEMU is outside its jail, tried in processes that became it."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
from pathlib import Path

import pytest

from alcove.errors import MachineError
from alcove.machine import process
from alcove.machine.argv import Qemu
from alcove.machine.confinement import FIRST_UID, Confinement, limits, own_uid
from alcove.machine.process import jail_works
from alcove.machine.spec import GuestMemory, MachineSpec
from alcove.machine.stage import staged

ID = "i-0123456789abcdef0-enc0123456789abcdef"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def run(confinement: Confinement, stage: dict[Path, Path], *words: str) -> subprocess.CompletedProcess[str]:
    """A program in this confinement."""
    return subprocess.run(
        words, capture_output=True, text=True, check=False, cwd="/", preexec_fn=lambda: confinement.enter(stage)
    )


def test_user_ids_are_far_from_everybodys() -> None:
    """28 random bits of the enclave's id, in a range that no distribution and no container manager hands out."""
    assert own_uid(ID) == 0x70000000 | 0x9ABCDEF
    assert own_uid(ID[:-8] + "ffffffff") == 0x7FFFFFFF


def test_limits_follow_from_the_machine(spec: MachineSpec) -> None:
    """The guest's memory is the largest file; a limit of processes is for users of their own only."""
    found = limits(spec, alone=True)
    assert found[resource.RLIMIT_FSIZE] == 256 << 20
    assert found[resource.RLIMIT_CORE] == 0
    assert found[resource.RLIMIT_NPROC] == 2 + 64
    assert resource.RLIMIT_NPROC not in limits(spec, alone=False)
    assert resource.RLIMIT_MEMLOCK not in found
    locked = limits(dataclasses.replace(spec, memory=GuestMemory(locked=True)), alone=True)
    assert locked[resource.RLIMIT_MEMLOCK] == resource.RLIM_INFINITY


def test_limits_are_only_lowered() -> None:
    """A limit that is lower already stays; without root nothing else would be possible."""
    done = run(Confinement(limits={resource.RLIMIT_NOFILE: 64}), {}, "sh", "-c", "ulimit -Hn; ulimit -n 32; ulimit -Hn")
    assert done.stdout.split() == ["64", "32"]


@root_only
def test_another_user_sees_what_was_staged(tmp_path: Path) -> None:
    """Files below directories that only root may enter, under names of their own; everything else stays shut."""
    tmp_path.chmod(0o700)
    before = Path("/tmp").stat()
    secret, shown = tmp_path / "secret", tmp_path / "shown"
    secret.write_text("secret")
    shown.write_text("shown")
    confinement = Confinement(uid=FIRST_UID + 1)
    confinement.give(shown)
    shown.chmod(0o400)
    done = run(
        confinement, {staged(0): shown, staged(1): tmp_path}, "sh", "-c", f"id -u; cat {staged(0)}; ls {tmp_path}"
    )
    assert done.stdout.split() == [str(FIRST_UID + 1), "shown"]
    assert "secret" not in done.stdout
    assert os.path.samestat(Path("/tmp").stat(), before)  # this process's view is as it was


@root_only
def test_it_keeps_no_group_and_no_way_back() -> None:
    """No group of root's, no capability, no new privileges."""
    done = run(Confinement(uid=FIRST_UID + 2), {}, "cat", "/proc/self/status")
    status = {name: value.split() for name, _, value in (line.partition(":") for line in done.stdout.splitlines())}
    assert status["Groups"] == []
    assert status["CapEff"] == ["0" * 16]
    assert status["NoNewPrivs"] == ["1"]


def test_cpus_bind_every_thread_to_come() -> None:
    """The affinity is inherited by all that QEMU starts."""
    cpu = max(os.sched_getaffinity(0))
    done = run(Confinement(cpus=(cpu,)), {}, "grep", "Cpus_allowed_list", "/proc/self/status")
    assert done.stdout.split()[1] == str(cpu)


@root_only
def test_the_jail_can_be_built_by_that_user() -> None:
    """Where the kernel lets unprivileged users make namespaces; where not, it says so."""
    assert jail_works() is None
    why = jail_works(Confinement(uid=FIRST_UID))
    assert why is None or "namespace" in why or "ermission" in why or "ermitted" in why


def test_what_goes_wrong_before_the_jail_is_named(spec: MachineSpec, qemu: Qemu, tmp_path: Path) -> None:
    """A control group that is not there: the error says which file, and nothing is started."""
    with pytest.raises(MachineError, match="nowhere") as caught:
        process.start(spec, qemu, console_fd=None, stderr_fd=2, confinement=Confinement(cgroup=tmp_path / "nowhere"))
    assert "cannot start bubblewrap" in caught.value.message
