"""How far an enclave is shut off on this machine: its pool's mode, its QEMU's user, its control group, its supervisor.

Nothing here is silently weaker: what cannot be had is a reason in words, which `alcove doctor` prints.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from alcove.attestation.root_key import Kind
from alcove.attestation.store import Store
from alcove.enclave import landlock
from alcove.enclave.allocator import Allocation, Pool, allocate
from alcove.enclave.cgroup import Cgroups, GroupLimits
from alcove.enclave.config import RunRequest
from alcove.enclave.memory import plan_memory
from alcove.enclave.paths import Paths
from alcove.enclave.pool import load_pool
from alcove.enclave.privileges import Capability, confine_files, drop_capabilities
from alcove.enclave.record import Record
from alcove.errors import AlcoveError, MachineError
from alcove.machine.confinement import FIRST_UID, OTHER_THREADS, Confinement, kvm_groups, limits, own_uid
from alcove.machine.doctor import Check
from alcove.machine.process import jail_works
from alcove.machine.spec import Accelerator, GuestMemory, MachineSpec
from alcove.machine.threads import pin_vcpus

_HUGE_PAGES: Final = Path("/sys/kernel/mm/hugepages")
_OVERHEAD_MIB: Final[dict[Accelerator, int]] = {"kvm": 256, "tcg": 768}  # QEMU itself; TCG's code buffer has 256
_CAP_SYS_RESOURCE: Final = 24
_LOCAL_KEYS: Final = (Kind.PLAIN, Kind.ELSEWHERE)


def pool_of(paths: Paths) -> Pool:
    """This machine's pool; errors as in :func:`alcove.enclave.pool.load_pool`."""
    return load_pool(paths.config, obstacle=_exclusive_obstacle)


def grant(
    pool: Pool, taken: Sequence[Allocation], request: RunRequest, image_bytes: int
) -> tuple[Allocation, GuestMemory]:
    """What an enclave gets, and what its memory is made of; errors as in `allocate`, then as in `plan_memory`."""
    ask = partial(allocate, pool, taken, image_bytes=image_bytes, cpu_count=request.cpu_count, cpu_ids=request.cpu_ids)
    allocation, exclusive = ask(memory_mib=request.memory_mib), pool.mode == "exclusive"
    memory_mib, memory = plan_memory(
        request.memory_mib,
        exclusive=exclusive,
        huge_pages=free_huge_pages() if exclusive else {},
        lock_obstacle=lock_obstacle(),
    )
    # whole pages may be more than was asked for, and have to fit too
    return allocation if memory_mib == allocation.memory_mib else ask(memory_mib=memory_mib), memory


def _exclusive_obstacle(memory_mib: int) -> str | None:
    if why := Cgroups.of_this_machine().exclusive_obstacle():
        return why
    in_pages = max((page * free for page, free in _huge_pages("nr_hugepages").items()), default=0)
    if in_pages < memory_mib and (why := lock_obstacle()):
        return f"{in_pages} MiB of huge pages are reserved, {memory_mib} MiB are in the pool, and {why}"
    return None


def free_huge_pages() -> dict[int, int]:
    """Size of a page in MiB to how many nobody has or was promised."""
    promised = _huge_pages("resv_hugepages")
    return {page: free - promised.get(page, 0) for page, free in _huge_pages("free_hugepages").items()}


def _huge_pages(name: str) -> dict[int, int]:
    found = {}
    for directory in _HUGE_PAGES.glob("hugepages-*kB"):
        page = int(directory.name.removeprefix("hugepages-").removesuffix("kB")) // 1024
        if page:  # some machines have small ones of 64 KiB
            found[page] = int((directory / name).read_text())
    return found


def lock_obstacle() -> str | None:
    """Why QEMU may not lock its memory, or None."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY or _capable(_CAP_SYS_RESOURCE):
        return None
    return f"the limit of locked memory is {hard // 1024} KiB and cannot be raised"


def _capable(capability: int) -> bool:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(line.split()[1], 16) >> capability & 1)


def own_user_obstacle() -> str | None:
    """Why QEMU cannot have a user id of its own here, or None when it can."""
    if os.geteuid() != 0:
        return "only root can give QEMU a user of its own; it runs as you"
    if why := jail_works(Confinement(uid=FIRST_UID)):
        return f"an unprivileged user cannot build the jail ({why}); QEMU runs as root without capabilities"
    return None


def shut_off(pool: Pool, record: Record, spec: MachineSpec) -> tuple[Confinement, Callable[[], None]]:
    """Make what an enclave's QEMU is started in.

    Returns:
        What holds for the process, and what undoes it when the enclave has ended.

    Raises:
        MachineError: E29 when CPUs or limits that the pool's mode promises are refused.
    """
    exclusive, groups = pool.mode == "exclusive", Cgroups.of_this_machine()
    uid = own_uid(record.enclave_id) if own_user_obstacle() is None else None
    group = _group(groups, pool, record, spec)
    return Confinement(
        uid=uid,
        groups=kvm_groups() if spec.accelerator == "kvm" else (),
        limits=limits(spec, alone=uid is not None),
        cpus=record.cpu_ids if exclusive else None,
        cgroup=group,
    ), lambda: groups.remove(record.enclave_id) if group else None


def _group(groups: Cgroups, pool: Pool, record: Record, spec: MachineSpec) -> Path | None:
    """The enclave's group. Exclusive mode rests on it; in shared mode it is a further bound where one can be made."""
    exclusive = pool.mode == "exclusive"
    if groups.obstacle() is not None:
        return None
    try:
        limits_ = _group_limits(pool, record, spec)
        return groups.make(record.enclave_id, limits_, pool=pool.cpus if exclusive else None)
    except MachineError:
        if exclusive:
            raise
        return None


def _group_limits(pool: Pool, record: Record, spec: MachineSpec) -> GroupLimits:
    exclusive = pool.mode == "exclusive"
    return GroupLimits(
        memory_mib=spec.memory_mib + _OVERHEAD_MIB[spec.accelerator],
        processes=spec.cpu_count + OTHER_THREADS,
        cpus=spec.cpu_count,
        own_cpus=record.cpu_ids if exclusive else None,
        node=pool.topology.node_of(record.cpu_ids) if exclusive and pool.topology else None,
    )


def forgo(paths: Paths, pool: Pool) -> None:
    """The supervisor gives up what it needs no more, once its machine is started (`privileges`).

    A root key in a token or behind a passphrase needs its libraries and files when a certificate is renewed, so files
    are not given up then.
    """
    keep = {Capability.KILL, *((Capability.SYS_NICE,) if pool.mode == "exclusive" else ())}
    if Store(paths.authority).key_place().kind in _LOCAL_KEYS:
        groups = Cgroups.of_this_machine()
        write = [paths.run, paths.authority, *(() if groups.obstacle() else (groups.top,))]
        confine_files(write=write)
    drop_capabilities(keep)


def pin(pool: Pool, process: int, cpus: Sequence[int]) -> None:
    """In exclusive mode, bind each vCPU to its CPU, and give up the right to do it; errors as in `pin_vcpus`.

    Args:
        pool: Whose mode holds.
        process: The machine, as started by `alcove.machine.process.start`, with its vCPUs running.
        cpus: One for each vCPU.
    """
    if pool.mode == "exclusive":
        pin_vcpus(process, cpus)
        drop_capabilities({Capability.KILL})


def pool_note(pool: Pool) -> str:
    """One line about a pool's mode, for people."""
    return f"Resources are in {pool.mode} mode: {pool.why}"


def checks(paths: Paths) -> list[Check]:
    """What `alcove doctor` says about resources and isolation; shared mode and less than root are no faults."""
    groups, version = Cgroups.of_this_machine(), landlock.version()
    limited = ", ".join(sorted(groups.controllers())) or "no controller: nothing is limited by it"
    return [
        _resources(paths),
        Check("qemu's user", True, own_user_obstacle() or "one of its own for every enclave"),
        Check("control group", True, groups.obstacle() or f"one for every enclave, with {limited}"),
        Check(
            "landlock", True, f"version {version}" if version else "not in this kernel; the supervisor keeps its files"
        ),
    ]


def _resources(paths: Paths) -> Check:
    try:
        pool = pool_of(paths)
    except AlcoveError as error:
        return Check("resources", False, error.message, error.hint)
    cpus = ",".join(map(str, pool.cpus))
    return Check(
        "resources",
        True,
        f"CPUs {cpus}, {pool.memory_mib} MiB, {pool.max_enclaves} enclaves; {pool.mode} mode: {pool.why}",
    )
