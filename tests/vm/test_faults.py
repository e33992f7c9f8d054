"""What goes wrong around real enclaves: each fault ends one enclave with one reason, and leaves nothing.

The last test starts and ends an enclave again and again, three times unless ALCOVE_CYCLES says otherwise:

    ALCOVE_CYCLES=50 .venv/bin/pytest tests/vm/test_faults.py -k cycles
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alcove.codec import cpio
from alcove.enclave.supervisor import boot_timeout
from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.format import SectionType
from alcove.image.reader import read_eif, read_section

CYCLES = int(os.environ.get("ALCOVE_CYCLES", "3"))
KEPT = {"registry.lock", "enclaves", "cid", "vsock", "ended"}  # what a runtime directory without enclaves may have
BUSYBOX = next((path for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")) if path.exists()), None)


@pytest.fixture(scope="module")
def own(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Commands with a runtime directory of this module's own, so that what is left in it was left by a test here."""
    made = type(cli)(tmp_path_factory.mktemp("f"))
    yield made
    made("nitro-cli", "terminate-enclave", "--all")


@pytest.fixture(autouse=True)
def _alone(own: Any) -> Iterator[None]:
    """What one test leaves running after a failure is not the next one's fault."""
    yield
    own("nitro-cli", "terminate-enclave", "--all")


@pytest.fixture(scope="module")
def image(own: Any, hello_eif: Path) -> Callable[[str, str], Path]:
    """Builds an image with the hello image's kernel, whose /init is a line of shell: nothing of ours runs inside."""
    with hello_eif.open("rb") as file:
        eif = read_eif(file)
        kernel = read_section(file, eif.find(SectionType.KERNEL))
        metadata = read_section(file, eif.find(SectionType.METADATA))

    def build(name: str, line: str, boot: bytes = kernel) -> Path:
        assert BUSYBOX is not None
        script = f"#!/bin/busybox sh\n/bin/busybox mkdir /dev /proc\n{line}\n".encode()
        program = BUSYBOX.read_bytes()
        entries = [
            cpio.Entry(b"bin", stat.S_IFDIR | 0o755),
            cpio.Entry(b"bin/busybox", stat.S_IFREG | 0o755, size=len(program), data=lambda: iter([program])),
            cpio.Entry(b"init", stat.S_IFREG | 0o755, size=len(script), data=lambda: iter([script])),
        ]
        target: Path = own.directory / f"{name}.eif"
        sections = [
            NewSection(SectionType.KERNEL, (boot,)),
            NewSection(SectionType.CMDLINE, (b"console=ttyS0 reboot=t panic=-1",)),
            NewSection(SectionType.METADATA, (metadata,)),
            NewSection(SectionType.RAMDISK, cpio.archive(entries)),
        ]
        write_eif(target, NewHeader(0), sections)
        return target

    return build


@pytest.fixture(scope="module")
def application(own: Any) -> Callable[[str, str], Path]:
    """Builds an image with our init, whose application is a line of shell."""

    def build(name: str, line: str) -> Path:
        assert BUSYBOX is not None
        context = own.directory / name
        context.mkdir()
        shutil.copy(BUSYBOX, context / "busybox")
        command = json.dumps(["/bin/busybox", "sh", "-c", line])
        (context / "Dockerfile").write_text(f"FROM scratch\nCOPY busybox /bin/busybox\nCMD {command}\n")
        target: Path = own.directory / f"{name}.eif"
        own.json(
            "nitro-cli", "build-enclave", "--docker-dir", context, "--docker-uri", f"{name}:t", "--output-file", target
        )
        return target

    return build


def start(own: Any, eif: Path, *flags: object, **variables: str) -> subprocess.Popen[str]:
    """run-enclave, not waited for."""
    arguments = ("run-enclave", "--eif-path", eif, "--cpu-count", 1, "--memory", 256, *flags)
    return subprocess.Popen(
        own.command("nitro-cli", *arguments),
        env=own.environment | variables,
        cwd=own.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON of a start that must end well."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    entry: dict[str, Any] = json.loads(out)
    return entry


def refused(process: subprocess.Popen[str]) -> list[str]:
    """What a start said that must fail: one line, and a hint where there is one; nothing but these."""
    out, err = process.communicate(timeout=240)
    assert process.returncode not in (0, None)
    assert out == ""
    assert "Traceback" not in err
    said = [line for line in err.splitlines() if not line.startswith(("Start allocating memory", "Resources are in"))]
    assert 1 <= len(said) <= 2, err
    assert said[1:] == [] or said[1].startswith("hint: ")
    return said


def left(run: Path) -> set[str]:
    """What is in a runtime directory beside what may always be there."""
    found = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    return {name for name in found - KEPT if not name.startswith("ended/")}


def ended(own: Any, enclave_id: str, seconds: float = 120) -> dict[str, Any]:
    """The entry of an enclave that has ended, or soon will have."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for entry in own.json("alcove", "describe-enclaves", "--all"):
            if entry["EnclaveID"] == enclave_id and entry["State"] == "ENDED":
                assert not (own.run_directory / "enclaves" / enclave_id).exists()
                return dict(entry)
        time.sleep(0.2)
    raise AssertionError(f"{enclave_id} has not ended")


def alive(pid: str) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[str], seconds: float = 60) -> bool:
    """Whether all of them end in time."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_sigkill_to_qemu_and_to_its_jail(own: Any, hello_eif: Path, machines: Callable[[int], list[str]]) -> None:
    """Either ends its own enclave with a reason that names the signal; the other enclave notices nothing."""
    first, second = [started(process) for process in [start(own, hello_eif), start(own, hello_eif)]]
    trees = {entry["EnclaveID"]: machines(entry["ProcessID"]) for entry in (first, second)}
    os.kill(int(trees[first["EnclaveID"]][-1]), signal.SIGKILL)  # the innermost: QEMU
    entry = ended(own, first["EnclaveID"])
    assert (entry["Cause"], entry["Reason"]) == ("killed", "signal 9 ended QEMU")
    assert [e["EnclaveID"] for e in own.json("nitro-cli", "describe-enclaves")] == [second["EnclaveID"]]
    os.kill(int(trees[second["EnclaveID"]][0]), signal.SIGKILL)  # the outermost: the jail
    assert ended(own, second["EnclaveID"])["Cause"] == "killed"
    assert gone([pid for tree in trees.values() for pid in tree])
    assert left(own.run_directory) == set()


def test_a_guest_that_spins_can_be_ended_and_one_that_powers_off_ends(
    own: Any, application: Callable[[str, str], Path]
) -> None:
    """An application that takes all it can get does not keep terminate waiting; a power-off is an end like another."""
    # a second of sleep: the start must have ended well before
    off = application("off", "/bin/busybox sleep 1; /bin/busybox poweroff -f")
    spinner = start(own, application("spins", "while :; do :; done"))
    going = started(start(own, off))
    assert ended(own, going["EnclaveID"])["Cause"] == "reset"
    spinning = started(spinner)
    time.sleep(1)
    before = own.json("alcove", "top", "--json")
    assert [entry["EnclaveID"] for entry in before] == [spinning["EnclaveID"]]
    own.terminate(spinning)
    assert ended(own, spinning["EnclaveID"])["Cause"] == "terminated"
    assert left(own.run_directory) == set()


def test_a_guest_that_never_reports_is_ended_after_the_boot_timeout(
    own: Any, image: Callable[[str, str], Path]
) -> None:
    """E36, with the console's last lines in debug mode and without a word of the guest's otherwise."""
    eif = image("silent", "echo the guest was here; exec /bin/busybox sleep 1000")
    for seconds in (12, 80):  # on a slow machine the guest's line takes longer
        begun, flags = time.monotonic(), ("--boot-timeout", seconds)
        debug, production = start(own, eif, *flags, "--debug-mode"), start(own, eif, *flags)
        said, secret = refused(debug), refused(production)
        assert seconds <= time.monotonic() - begun < boot_timeout(eif.stat().st_size, 256)
        assert debug.returncode == production.returncode == 36
        assert said[0] == secret[0] == f"[ E36 ] the enclave did not report that it is up within {seconds} s"
        if "the guest was here" in said[1]:
            break
    assert "the guest was here" in said[1]
    assert secret[1] == "hint: start it with --debug-mode and look at the console"
    assert left(own.run_directory) == set()


def test_a_machine_that_does_not_start_shows_qemus_own_words(
    own: Any, image: Callable[[str, str, bytes], Path]
) -> None:
    """A kernel that is none: E36 with what QEMU says of it."""
    process = start(own, image("no-kernel", "true", b"no kernel at all" * 4096))
    said = refused(process)
    assert process.returncode == 36
    assert said[0].startswith("[ E36 ] the enclave did not start: ")
    assert "qemu" in said[0]
    assert left(own.run_directory) == set()


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("options", ["size=1m", "size=64m,nr_inodes=6", "size=64m,nr_inodes=11"])
def test_a_full_disk_in_the_runtime_directory(own: Any, hello_eif: Path, tmp_path: Path, options: str) -> None:
    """No room for the image, for a directory or for a socket: one line, and the disk is as empty as before."""
    run, listing = tmp_path / "run", tmp_path / "listing"
    run.mkdir()
    mount = f"mount -t tmpfs -o mode=755,{options} none {run} || exit 99"
    script = f'{mount}; "$@"; status=$?; find {run} -mindepth 1 > {listing}; exit $status'
    arguments = ("run-enclave", "--eif-path", hello_eif, "--cpu-count", 1, "--memory", 256)
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", *own.command("nitro-cli", *arguments)],
        env=own.environment | {"ALCOVE_RUN": str(run)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = refused(process)
    assert process.returncode != 99, "tmpfs cannot be mounted"
    assert "No space left on device" in said[0]
    names = {Path(line).relative_to(run).as_posix() for line in listing.read_text().splitlines()}
    assert names <= KEPT


def test_a_runtime_directory_from_before_a_reboot(own: Any, tmp_path: Path) -> None:
    """Directories that nobody holds, sockets and half-made starts go; how enclaves ended is kept and completed."""
    other = type(own)(tmp_path)
    stale, note = "i-0123456789abcdef0-enc0000000000000001", "i-0123456789abcdef0-enc0000000000000002"
    enclave = other.run_directory / "enclaves" / stale
    enclave.mkdir(parents=True)
    record = {
        "enclave_id": stale, "name": "stale", "cid": 16, "cpu_ids": [0], "memory_mib": 64, "process_id": 2,
        "debug_mode": False,
    }  # fmt: skip
    (enclave / "record.json").write_text(json.dumps(record))
    (enclave / "lock").touch(0o600)
    for name in ("control.sock", "vsock.sock", "nsm.dev"):
        os.mknod(enclave / name, stat.S_IFSOCK | 0o600)
    kept = other.run_directory / "ended"
    kept.mkdir()
    done = record | {"enclave_id": note, "started": None, "ended": "2026-01-01T00:00:00+00:00", "cause": "exited",
                     "reason": "the application ended with status 0", "exit_status": 0}  # fmt: skip
    (kept / f"{note}.json").write_text(json.dumps(done))
    (other.run_directory / "boot-abc").mkdir()
    assert other.json("nitro-cli", "describe-enclaves") == []
    entries = {e["EnclaveID"]: e["Cause"] for e in other.json("alcove", "describe-enclaves", "--all")}
    assert entries == {note: "exited", stale: "supervisor killed"}
    refused(start(other, tmp_path / "missing.eif"))
    assert left(other.run_directory) == set()


def test_sigkill_during_a_start_leaves_nothing_behind_the_next(own: Any, hello_eif: Path) -> None:
    """run-enclave says that its supervisor died; the next command clears up."""
    process = start(own, hello_eif)
    deadline = time.monotonic() + 120
    while not (records := list((own.run_directory / "enclaves").glob("i-*/record.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(json.loads(records[0].read_text())["process_id"], signal.SIGKILL)
    said = refused(process)
    assert process.returncode == 5
    assert said[0].startswith("[ E05 ] ")
    assert own.json("nitro-cli", "describe-enclaves") == []
    refused(start(own, own.directory / "missing.eif"))
    assert left(own.run_directory) == set()


def test_an_enclave_that_boots_is_listed_and_can_be_ended(own: Any, image: Callable[[str, str], Path]) -> None:
    """From the moment it has its CID: state EMPTY, console, a row in top; terminate-enclave undoes the start (E36)."""
    eif = image("booting", "echo the guest was here; exec /bin/busybox sleep 1000")
    booting = start(own, eif, "--debug-mode")
    enclaves = own.run_directory / "enclaves"
    while booting.poll() is None and not list(enclaves.glob("i-*")):
        time.sleep(0.01)
    (entry,) = own.json("nitro-cli", "describe-enclaves")
    assert (entry["State"], entry["EnclaveName"], entry["Flags"]) == ("EMPTY", "booting", "DEBUG_MODE")
    assert len(entry["Measurements"]["PCR0"]) == 96
    assert own("alcove", "logs", "booting").returncode == 0
    assert "starting" in own("alcove", "top", "--once").stdout.splitlines()[1]
    with subprocess.Popen(
        own.command("nitro-cli", "console", "--enclave-name", "booting"),
        env=own.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        assert any("the guest was here" in line for line in watching.stdout)
        (done,) = own.json("nitro-cli", "terminate-enclave", "--all")
        assert done["EnclaveID"] == entry["EnclaveID"]
        watching.stdout.read()
        assert watching.wait(120) == 0
    assert refused(booting)[0] == "[ E36 ] the enclave did not start: the enclave was terminated"
    assert booting.returncode == 36
    assert left(own.run_directory) == set()


def test_attach_console_shows_all_of_an_application_that_ends_at_once(
    own: Any, application: Callable[[str, str], Path]
) -> None:
    """Even where the enclave is gone before the console is reached; and the command ends with the enclave."""
    attached = start(own, application("brief", "echo that is all"), "--attach-console")
    out, err = attached.communicate(timeout=240)
    assert attached.returncode == 0, err
    entry, _ = json.JSONDecoder().raw_decode(out)
    assert "Successfully connected to the console.\n" in out
    assert "that is all" in out
    assert ended(own, entry["EnclaveID"])["Cause"] == "exited"
    assert left(own.run_directory) == set()


def test_four_enclaves_at_once(own: Any, hello_eif: Path, machines: Callable[[int], list[str]]) -> None:
    """Four starts at the same moment on however few CPUs: all are listed, one shows its console, all are ended."""
    processes = [start(own, hello_eif, "--enclave-name", "four", "--debug-mode") for _ in range(4)]
    entries = [started(process) for process in processes]
    assert {entry["EnclaveName"] for entry in entries} == {"four", "four_1", "four_2", "four_3"}
    assert {entry["EnclaveCID"] for entry in entries} == {16, 17, 18, 19}
    listed = own.json("nitro-cli", "describe-enclaves")
    assert {entry["EnclaveID"]: entry["State"] for entry in listed} == {e["EnclaveID"]: "RUNNING" for e in entries}
    assert refused(start(own, hello_eif))[0].startswith("[ E")  # a fifth is one more than there may be
    begun = time.monotonic()
    shown = own("nitro-cli", "console", "--enclave-name", "four_2", "--disconnect-timeout", 10)
    assert time.monotonic() - begun >= 10  # and it ends at all: the enclave goes on
    while "Hello from the enclave side!" not in shown.stdout and time.monotonic() - begun < 120:
        shown = own("nitro-cli", "console", "--enclave-name", "four_2", "--disconnect-timeout", 1)
    assert "Hello from the enclave side!" in shown.stdout
    pids = [pid for entry in entries for pid in [str(entry["ProcessID"]), *machines(entry["ProcessID"])]]
    os.kill(entries[0]["ProcessID"], signal.SIGSTOP)  # one that does not answer takes nothing from the others
    try:
        shown = own("nitro-cli", "describe-enclaves")
    finally:
        os.kill(entries[0]["ProcessID"], signal.SIGCONT)
    assert shown.returncode == 39
    assert {entry["EnclaveID"] for entry in json.loads(shown.stdout)} == {e["EnclaveID"] for e in entries[1:]}
    assert "Failed connections: 1\n[ E39 ] 1 enclave process(es) did not answer\n" in shown.stderr
    done = own.json("nitro-cli", "terminate-enclave", "--all")
    assert {entry["EnclaveID"] for entry in done} == {entry["EnclaveID"] for entry in entries}
    assert not any(map(alive, pids))
    assert left(own.run_directory) == set()


def groups(entry: dict[str, Any]) -> list[str]:
    """The enclave's control groups; those of others come and go meanwhile."""
    tree = os.walk("/sys/fs/cgroup")
    return [f"{at}/{name}" for at, names, _ in tree for name in names if entry["EnclaveID"] in name]


def test_cycles_leak_nothing(own: Any, hello_eif: Path, machines: Callable[[int], list[str]], tmp_path: Path) -> None:
    """Start and end, in turn, with a pool that one enclave fills: no process, file, socket, cgroup or byte is left."""
    (tmp_path / "allocator.yaml").write_text("memory_mib: 256\ncpu_count: 1\nmode: shared\n")
    before = {fd.name for fd in Path("/proc/self/fd").iterdir()}
    for _ in range(CYCLES):
        entry = started(start(own, hello_eif, ALCOVE_CONFIG=str(tmp_path)))
        pids = [str(entry["ProcessID"]), *machines(entry["ProcessID"])]
        assert len(pids) >= 3
        assert groups(entry) or os.getuid() != 0
        own.terminate(entry)
        assert not any(map(alive, pids))
        assert left(own.run_directory) == set()
        assert entry["EnclaveID"] not in Path("/proc/net/unix").read_text()
        assert not groups(entry)
    assert len({fd.name for fd in Path("/proc/self/fd").iterdir()}) <= len(before)
