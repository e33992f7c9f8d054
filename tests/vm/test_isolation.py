"""What AWS promises about isolation, looked at from outside and inside a running enclave (SECURITY.md's table)."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import json
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.forked import in_child

from alcove.cli import lifeline, nitro  # noqa: F401 - loaded before a test becomes another user
from alcove.enclave import control, lifecycle, registry  # noqa: F401 - loaded before a test becomes another user
from alcove.enclave.isolation import free_huge_pages, own_user_obstacle
from alcove.enclave.paths import Paths
from alcove.errors import MachineError
from alcove.machine.argv import qemu_argv
from alcove.machine.confinement import own_uid
from alcove.machine.qemu import find_qemu
from alcove.machine.spec import GuestMemory, MachineSpec
from alcove.machine.threads import pin_vcpus, vcpu_threads

NOBODY = 65534
CAP_KILL = 1 << 5
PTRACE_ATTACH = 16
PROMPTLY = 60.0
DOCKERFILE = r"""
FROM scratch
COPY --chmod=0755 busybox /bin/busybox
COPY --chmod=0755 look.sh /bin/look.sh
CMD ["/bin/look.sh"]
"""
LOOK = r"""#!/bin/busybox sh
b=/bin/busybox
say() { echo "look: $1=$($b echo $2)"; }
say net "$($b ls /sys/class/net)"
say block "$($b ls /sys/class/block)"
say pci "$($b ls /sys/bus/pci/devices)"
say virtio "$($b cat /sys/bus/virtio/devices/*/device)"
say routes "$($b tail -n +2 /proc/net/route)"
say hwrng "$($b cat /sys/class/misc/hw_random/rng_current) $($b head -c 1000 /dev/hwrng | $b wc -c)"
say clock "$($b cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "look: end"
exec $b sleep 600
"""

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give QEMU a user of its own")


@dataclass
class Looked:
    """A running enclave: its files, its supervisor and its QEMU."""

    started: dict[str, Any]
    directory: Path
    supervisor: int
    qemu: int

    def status(self, process: int) -> dict[str, str]:
        """The fields of /proc/PID/status."""
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def memory_file(self) -> Path:
        """The guest's memory, among QEMU's descriptors."""
        files = Path(f"/proc/{self.qemu}/fd").iterdir()
        return next(file for file in files if "memory-backend-memfd" in str(file.readlink()))


@pytest.fixture(scope="module")
def public(cli: Any) -> Iterator[Any]:
    """Commands with a runtime directory that every user can enter, as /run/alcove is."""
    directory = Path(tempfile.mkdtemp(prefix="alcove-isolation-", dir="/tmp"))
    directory.chmod(0o755)
    yield type(cli)(directory)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def look_eif(cli: Any) -> Path:
    """An image that says what it sees."""
    context = cli.directory / "look"
    context.mkdir()
    busybox = next(path for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")) if path.exists())
    shutil.copy(busybox, context / "busybox")
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "look.sh").write_text(LOOK)
    target: Path = cli.directory / "look.eif"
    built = cli("nitro-cli", "build-enclave", "--docker-dir", context, "--docker-uri", "l:1", "--output-file", target)
    assert built.returncode == 0, built.stderr
    return target


def look_at(cli: Any, started: dict[str, Any]) -> Looked:
    supervisor = int(started["ProcessID"])
    qemu = next(iter(vcpu_process(supervisor)))
    return Looked(started, cli.run_directory / "enclaves" / started["EnclaveID"], supervisor, qemu)


def vcpu_process(supervisor: int) -> set[int]:
    threads = vcpu_threads(supervisor).values()
    return {int(line.split()[1]) for tid in threads for line in status_lines(tid) if line.startswith("Tgid")}


def status_lines(process: int) -> list[str]:
    return Path(f"/proc/{process}/status").read_text().splitlines()


@pytest.fixture(scope="module")
def enclave(public: Any, look_eif: Path) -> Iterator[Looked]:
    """One enclave in debug mode that all tests here share."""
    started = public.run_enclave(look_eif, "--debug-mode", "--enclave-name", "looked-at")
    yield look_at(public, started)
    public.terminate(started)


@pytest.fixture(scope="module")
def inside(public: Any, enclave: Looked) -> dict[str, list[str]]:
    """What the program in the enclave sees, from its console."""
    deadline = time.monotonic() + 180
    text = ""
    while "look: end" not in text:
        assert time.monotonic() < deadline, text[-2000:]
        shown = public("nitro-cli", "console", "--enclave-id", enclave.started["EnclaveID"], "--disconnect-timeout", 1)
        text = shown.stdout
    lines = [line.split("look: ", 1)[1].strip() for line in text.splitlines() if "look: " in line and "=" in line]
    return {name: value.split() for name, _, value in (line.partition("=") for line in lines)}


def as_nobody(action: Callable[[], object]) -> Any:
    """What `action` returns, as JSON, or the name of the error that it raises, in a process of another user."""

    def become() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)

    def outcome() -> object:
        try:
            return action()
        except (OSError, MachineError) as error:
            return type(error).__name__

    return in_child(outcome, become)


def connect(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    return "connected"


def ptrace(process: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, process, None, None) == 0:
        return "attached"
    raise OSError(ctypes.get_errno(), "ptrace")


def read_memory(process: int) -> str:
    """One byte of the first mapping, by process_vm_readv(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_size_t * 2)(0x1000, 8)
    if libc.process_vm_readv(process, vector, 1, remote, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "process_vm_readv")
    return "read"


def first_byte(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(1).hex()


# from inside


def test_the_enclave_sees_no_network(inside: dict[str, list[str]]) -> None:
    """AWS: no network. There is the loopback interface, and no route."""
    assert inside["net"] == ["lo"]
    assert inside["routes"] == []


def test_the_enclave_sees_no_disk_and_no_other_device(inside: dict[str, list[str]]) -> None:
    """AWS: no persistent storage. No block device, no PCI; the two virtio devices are vsock (19) and the NSM (33)."""
    assert inside["block"] == []
    assert inside["pci"] == []
    assert sorted(inside["virtio"]) == ["0x0013", "0x0021"]


# QEMU, from outside


def test_the_kernels_random_numbers_come_from_the_nsm(inside: dict[str, list[str]]) -> None:
    """nsm.md §2.2: the hardware generator is the NSM, and gives as much as is asked for."""
    assert inside["hwrng"] == ["nsm-hwrng", "1000"]


def test_the_guests_clock_counts_no_interrupts(inside: dict[str, list[str]]) -> None:
    """Those of a busy host come late: the guest keeps to the processor's counter, however busy this machine is."""
    assert inside["clock"][0] in {"tsc-early", "tsc", "kvm-clock"}


def test_qemu_has_no_privilege(enclave: Looked) -> None:
    """No capability in any set, no way to get one, and a filter on its system calls."""
    status = enclave.status(enclave.qemu)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


@root_only
def test_qemu_runs_as_a_user_of_its_own(enclave: Looked) -> None:
    """A user and group that nobody else has, derived from the enclave's id, outside and not only inside its jail."""
    if why := own_user_obstacle():
        pytest.skip(why)
    status, uid = enclave.status(enclave.qemu), own_uid(enclave.started["EnclaveID"])
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(uid)}
    assert status["Groups"] == ""


def test_qemu_shares_no_namespace_with_the_parent(enclave: Looked) -> None:
    """User, mount, process, network, IPC, host name and control group namespaces are all its own."""
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        own, theirs = (Path(f"/proc/{process}/ns/{kind}").readlink() for process in (enclave.qemu, "self"))
        assert own != theirs, kind


def test_qemu_has_no_network(enclave: Looked) -> None:
    """Its network namespace holds a loopback interface that has seen no byte."""
    interfaces = Path(f"/proc/{enclave.qemu}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert set(interfaces[0].split(":")[1].split()) == {"0"}


def test_qemu_sees_its_own_files_only_and_can_write_none(enclave: Looked) -> None:
    """Every mount is read-only: its program, its firmware, the image's two parts and the two device sockets."""
    mounts = [line.split() for line in Path(f"/proc/{enclave.qemu}/mountinfo").read_text().splitlines()]
    assert all("ro" in mount[5].split(",") for mount in mounts)
    names = {mount[4] for mount in mounts}
    assert {"/", "/boot/kernel", "/boot/initrd", "/run/nsm.sock", "/run/vsock.sock"} <= names
    rest = names - {"/", "/boot/kernel", "/boot/initrd", "/run/nsm.sock", "/run/vsock.sock"}
    assert all(name.startswith(("/qemu/", "/lib", "/usr/")) for name in rest)
    assert not any(name.startswith(("/proc", "/sys", "/dev", "/etc", "/home", "/tmp")) for name in rest)


def test_qemu_holds_no_descriptor_of_the_supervisors(enclave: Looked) -> None:
    """Two pipes out, two device sockets, the guest's memory; the rest are events of its own."""
    targets = [str(file.readlink()) for file in Path(f"/proc/{enclave.qemu}/fd").iterdir()]
    kinds = [target.split(":")[0] for target in targets]
    assert kinds.count("socket") == 2
    assert kinds.count("pipe") == 2  # the console and QEMU's own complaints
    assert set(kinds) <= {"socket", "pipe", "/dev/null", "/memfd", "anon_inode"}


def test_qemu_is_limited(enclave: Looked) -> None:
    """No core file; no file larger than the guest's memory; few descriptors, processes and queues."""
    text = Path(f"/proc/{enclave.qemu}/limits").read_text().splitlines()
    hard = {line[:26].strip(): line[26:].split()[1] for line in text[1:]}
    assert hard["Max core file size"] == "0"
    assert hard["Max file size"] == str(enclave.started["MemoryMiB"] << 20)
    assert int(hard["Max open files"]) < 1024
    assert hard["Max msgqueue size"] == "0"
    if os.geteuid() == 0 and own_user_obstacle() is None:
        assert int(hard["Max processes"]) < 128


@root_only
def test_qemu_is_in_a_control_group_of_its_own(enclave: Looked) -> None:
    """Where control groups can be made: one for each enclave, with QEMU and its jail in it."""
    from alcove.enclave.cgroup import Cgroups  # noqa: PLC0415 - Linux alone

    groups = Cgroups.of_this_machine()
    if why := groups.obstacle():
        pytest.skip(why)
    members = (groups.group(enclave.started["EnclaveID"]) / "cgroup.procs").read_text().split()
    assert str(enclave.qemu) in members
    assert str(enclave.supervisor) not in members


def test_the_guests_memory_is_sealed_not_dumped_and_not_merged(enclave: Looked) -> None:
    """The file cannot shrink under its mappings; the mapping is left out of core files and of page merging (KSM)."""
    descriptor = os.open(enclave.memory_file(), os.O_RDWR)
    try:
        assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    finally:
        os.close(descriptor)
    blocks = Path(f"/proc/{enclave.qemu}/smaps").read_text().split("VmFlags: ")
    flags = [after.split("\n")[0].split() for before, after in pairwise(blocks) if "memfd" in before]
    assert flags
    for words in flags:
        assert "dd" in words  # MADV_DONTDUMP
        assert "mg" not in words  # MADV_MERGEABLE


def test_vcpus_can_be_pinned(enclave: Looked) -> None:
    """Exclusive mode pins each vCPU's thread: it is found by its name, and runs on that CPU alone."""
    every = os.sched_getaffinity(0)
    try:
        pin_vcpus(enclave.supervisor, [max(every)])
        thread = vcpu_threads(enclave.supervisor)[0]
        assert os.sched_getaffinity(thread) == {max(every)}
        assert os.sched_getaffinity(enclave.qemu) == every  # the main loop is not a vCPU
    finally:
        os.sched_setaffinity(vcpu_threads(enclave.supervisor)[0], every)


def test_more_vcpus_than_threads_cannot_be_pinned(enclave: Looked) -> None:
    """A machine that shows fewer vCPUs than it was given is an error, not a half-kept promise."""
    with pytest.raises(MachineError, match="1 vCPUs, not 2"):
        pin_vcpus(enclave.supervisor, [0, 0])


# the supervisor, from outside


@root_only
def test_the_supervisor_has_given_up_its_privileges(enclave: Looked) -> None:
    """Of root's capabilities it keeps the one that ends QEMU; no program gives one back; no core file."""
    status = enclave.status(enclave.supervisor)
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {CAP_KILL}
    assert {int(status[name], 16) for name in ("CapInh", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert resource.prlimit(enclave.supervisor, resource.RLIMIT_CORE) == (0, 0)


# other users of the parent


@root_only
def test_others_reach_no_socket_but_control(enclave: Looked) -> None:
    """Console, vsock and the two devices refuse another user; the control socket lets everybody describe."""
    for name in ("console.sock", "vsock.sock", "nsm.dev", "vsock.dev"):
        assert as_nobody(lambda name=name: connect(enclave.directory / name)) == "PermissionError", name  # type: ignore[misc]
    shown = as_nobody(lambda: control.ask(enclave.directory / "control.sock", "describe"))
    assert shown["EnclaveID"] == enclave.started["EnclaveID"]


@root_only
@pytest.mark.parametrize("word", ["terminate", "console"])
def test_others_may_neither_terminate_nor_read_the_console(enclave: Looked, word: str) -> None:
    """Both are refused by the supervisor, which asks the kernel who is calling."""
    assert as_nobody(lambda: control.ask(enclave.directory / "control.sock", word)) == "MachineError"
    assert control.ask(enclave.directory / "control.sock", "describe")["State"] == "RUNNING"


@root_only
def test_all_that_others_can_end_is_their_own(enclave: Looked, public: Any) -> None:
    """cli.md §3.4: terminate-enclave --all passes over what is somebody else's, and says so with an empty list."""
    paths = Paths(public.run_directory, public.run_directory, public.run_directory)

    def end_all() -> object:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            nitro.terminate_all(paths)
        return json.loads(said.getvalue())

    assert enclave.started["EnclaveID"] in {record.enclave_id for record in registry.live(paths)}
    assert as_nobody(end_all) == []
    assert control.ask(enclave.directory / "control.sock", "describe")["State"] == "RUNNING"


@root_only
@pytest.mark.parametrize("whose", ["qemu", "supervisor"])
def test_others_reach_neither_process(enclave: Looked, whose: str) -> None:
    """No signal, no debugger, no memory, no descriptor, no environment."""
    process: int = getattr(enclave, whose)
    attempts: list[Callable[[], object]] = [
        lambda: os.kill(process, signal.SIGKILL),
        lambda: ptrace(process),
        lambda: read_memory(process),
        lambda: first_byte(Path(f"/proc/{process}/mem")),
        lambda: Path(f"/proc/{process}/maps").read_text(),
        lambda: Path(f"/proc/{process}/environ").read_text(),
        lambda: list(Path(f"/proc/{process}/fd").iterdir()),
        lambda: list(Path(f"/proc/{process}/root/").iterdir()),
    ]
    assert [as_nobody(attempt) for attempt in attempts] == ["PermissionError"] * len(attempts)


@root_only
def test_others_can_put_nothing_in_the_way(public: Any, enclave: Looked) -> None:
    """Nobody else makes, replaces or removes a file of an enclave, or listens where enclaves connect to."""
    attempts: list[Callable[[], object]] = [
        (enclave.directory / "vsock.sock_5000").touch,
        (enclave.directory / "control.sock").unlink,
        (public.run_directory / "enclaves" / "new").mkdir,
        lambda: socket.socket(socket.AF_UNIX).bind(str(public.run_directory / "vsock" / "5000.sock")),
        lambda: first_byte(enclave.directory / "lock"),
    ]
    assert [as_nobody(attempt) for attempt in attempts] == ["PermissionError"] * len(attempts)


# no console, and memory after the end


def test_without_debug_mode_there_is_no_console_and_memory_goes_back(public: Any, look_eif: Path) -> None:
    """AWS: no console outside debug mode, and memory is returned: when the enclave ends, nothing holds its file."""
    started = public.run_enclave(look_eif)
    looked = look_at(public, started)
    try:
        words = Path(f"/proc/{looked.qemu}/cmdline").read_text().split("\0")
        assert words[words.index("-serial") + 1] == "null"
        assert str(Path(f"/proc/{looked.qemu}/fd/1").readlink()) == "/dev/null"
        assert not (looked.directory / "console.sock").exists()
        inode = looked.memory_file().stat().st_ino
        assert holders(inode) == {looked.qemu, looked.supervisor}
    finally:
        public.terminate(started)
    assert eventually(lambda: not holders(inode))


def holders(inode: int) -> set[int]:
    """The processes that map a memory file; pages of a file that nobody holds are the kernel's again."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:
            continue
        if any("memory-backend-memfd" in line and line.split()[4] == str(inode) for line in lines):
            found.add(int(maps.parent.name))
    return found


# exclusive memory, in a QEMU that waits before its first instruction


@contextlib.contextmanager
def waiting_qemu(memory: GuestMemory) -> Iterator[int]:
    """QEMU with 64 MiB of this memory and without devices, started by root outside the jail."""
    spec = MachineSpec(Path("/k"), Path("/i"), "", 1, 64, "tcg", Path("/n"), Path("/v"), console=False, memory=memory)
    qemu = find_qemu(Path(os.environ.get("ALCOVE_STATE", "/var/lib/alcove")) / "tools")
    words = qemu_argv(spec, qemu)
    words = [*words[: words.index("-kernel")], "-S", *words[words.index("-sandbox") :]]
    process = os.posix_spawn(words[0], words, {"PATH": os.defpath, **qemu.environment})
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PROMPTLY
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@root_only
def test_locked_memory_is_locked() -> None:
    """All of the guest's memory is resident and never swapped."""
    with waiting_qemu(GuestMemory(locked=True)) as process:

        def locked() -> bool:
            return next(int(line.split()[1]) for line in status_lines(process) if line.startswith("VmLck")) >= 64 * 1024

        assert eventually(locked)


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Forty more huge pages than there were, for as long as the test lasts."""
    reserved = Path("/proc/sys/vm/nr_hugepages")
    before = int(reserved.read_text())
    try:
        reserved.write_text(str(before + 40))
        if free_huge_pages().get(2, 0) < 32:
            pytest.skip("this machine has no 64 MiB for huge pages of 2 MiB")
        yield
    except OSError as error:
        pytest.skip(f"huge pages cannot be reserved: {error}")
    finally:
        with contextlib.suppress(OSError):
            reserved.write_text(str(before))


@root_only
@pytest.mark.usefixtures("huge_pages")
def test_memory_comes_from_huge_pages_and_goes_back() -> None:
    """The guest's memory is mapped in pages of 2 MiB, which are reserved while QEMU lives and free afterwards."""
    free = free_huge_pages()[2]
    with waiting_qemu(GuestMemory(page_mib=2)) as process:

        def mapped() -> bool:
            blocks = Path(f"/proc/{process}/smaps").read_text().split("VmFlags")
            return any("memory-backend-memfd" in block and "KernelPageSize:     2048 kB" in block for block in blocks)

        assert eventually(mapped)
        assert eventually(lambda: free_huge_pages()[2] <= free - 32)
    assert eventually(lambda: free_huge_pages()[2] == free)
