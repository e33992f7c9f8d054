from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_run_enclave_prints_aws_json(debug_enclave: dict[str, Any]) -> None:
    """cli.md §2: the seven keys in AWS's order, with an id of 39 characters."""
    assert list(debug_enclave) == [
        "EnclaveName", "EnclaveID", "ProcessID", "EnclaveCID", "NumberOfCPUs", "CPUIDs", "MemoryMiB",
    ]  # fmt: skip
    assert re.fullmatch(r"i-[0-9a-f]{17}-enc[0-9a-f]{16}", debug_enclave["EnclaveID"])
    assert debug_enclave["EnclaveCID"] >= 16
    assert debug_enclave["MemoryMiB"] == 256


def test_describe_lists_the_enclave_with_its_measurements(
    cli: Any, debug_enclave: dict[str, Any], hello_eif: Path
) -> None:
    """cli.md §2: RUNNING, DEBUG_MODE, and the measurements that describe-eif computes."""
    entry = next(e for e in cli.json("nitro-cli", "describe-enclaves") if e["EnclaveID"] == debug_enclave["EnclaveID"])
    image = cli.json("nitro-cli", "describe-eif", "--eif-path", hello_eif)
    assert (entry["State"], entry["Flags"]) == ("RUNNING", "DEBUG_MODE")
    assert entry["Measurements"] == image["Measurements"]
    assert "Metadata" not in entry


def test_describe_with_metadata_shows_the_image(cli: Any, debug_enclave: dict[str, Any]) -> None:
    """cli.md §2: --metadata adds the image's name, version and metadata."""
    entries = cli.json("nitro-cli", "describe-enclaves", "--metadata")
    entry = next(e for e in entries if e["EnclaveID"] == debug_enclave["EnclaveID"])
    assert entry["ImageName"] == "hello"
    assert "BuildMetadata" in entry["Metadata"] or "BuildTime" in entry["Metadata"]


def test_console_shows_the_boot_and_the_application(cli: Any, debug_enclave: dict[str, Any]) -> None:
    """cli.md §2: the backlog from the kernel's first lines, then what comes, until the time is over."""
    began = time.monotonic()
    done = cli("nitro-cli", "console", "--enclave-id", debug_enclave["EnclaveID"], "--disconnect-timeout", 3)
    assert done.returncode == 0
    assert time.monotonic() - began >= 3  # and it ends at all: the enclave goes on
    assert done.stdout.startswith("Connecting to the console for enclave ")
    assert "Linux version 6.12" in done.stdout
    assert "Hello from the enclave side!" in done.stdout


def test_a_production_enclave_has_no_console(cli: Any, hello_eif: Path) -> None:
    """A console on an enclave that is not in debug mode is refused with E44 and status 44."""
    started = cli.run_enclave(hello_eif)
    try:
        done = cli("nitro-cli", "console", "--enclave-id", started["EnclaveID"])
        assert done.returncode == 44
        assert done.stderr.startswith("[ E44 ] ")
    finally:
        cli.terminate(started)


def test_terminate_leaves_nothing(cli: Any, hello_eif: Path, machines: Callable[[int], list[str]]) -> None:
    """After terminate-enclave there is no process and no file of the enclave."""
    started = cli.run_enclave(hello_eif)
    below = machines(started["ProcessID"])
    assert below
    cli.terminate(started)
    assert not [pid for pid in (*below, str(started["ProcessID"])) if alive(int(pid))]
    assert not (cli.run_directory / "enclaves" / started["EnclaveID"]).exists()


def test_sigkill_to_the_supervisor_leaves_no_machine(
    cli: Any, hello_eif: Path, machines: Callable[[int], list[str]]
) -> None:
    """A killed supervisor takes QEMU with it, and the enclave is no longer listed."""
    started = cli.run_enclave(hello_eif)
    below = machines(started["ProcessID"])
    assert below
    os.kill(started["ProcessID"], signal.SIGKILL)
    assert wait(lambda: not any(alive(int(pid)) for pid in below))
    listed = [entry["EnclaveID"] for entry in cli.json("nitro-cli", "describe-enclaves")]
    assert started["EnclaveID"] not in listed
    assert not (cli.run_directory / "enclaves" / started["EnclaveID"]).exists()


def test_sigterm_to_the_supervisor_ends_the_enclave(cli: Any, hello_eif: Path) -> None:
    """cli.md §2: terminating ProcessID ends the enclave, in order."""
    started = cli.run_enclave(hello_eif)
    os.kill(started["ProcessID"], signal.SIGTERM)
    assert wait(lambda: not (cli.run_directory / "enclaves" / started["EnclaveID"]).exists())


def test_two_enclaves_start_in_parallel(cli: Any, hello_eif: Path) -> None:
    """Two starts at the same moment: both boot, each with its own CID, id and name."""
    command = cli.command(
        "nitro-cli", "run-enclave", "--eif-path", hello_eif, "--cpu-count", 1, "--memory", 256, "--enclave-name", "twin"
    )
    starts = [
        subprocess.Popen(command, env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=240) for process in starts]
    assert [process.returncode for process in starts] == [0, 0], results
    enclaves = [json.loads(out) for out, _ in results]
    try:
        assert len({enclave["EnclaveCID"] for enclave in enclaves}) == 2
        assert {enclave["EnclaveName"] for enclave in enclaves} == {"twin", "twin_1"}
        listed = {entry["EnclaveID"] for entry in cli.json("nitro-cli", "describe-enclaves")}
        assert {enclave["EnclaveID"] for enclave in enclaves} <= listed
    finally:
        for enclave in enclaves:
            cli.terminate(enclave)


def test_ctrl_c_during_the_boot_leaves_nothing(cli: Any, hello_eif: Path) -> None:
    """An interrupted run-enclave undoes the start."""
    before = set((cli.run_directory / "enclaves").glob("*"))
    process = subprocess.Popen(
        cli.command("nitro-cli", "run-enclave", "--eif-path", hello_eif, "--cpu-count", 1, "--memory", 256),
        env=cli.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - tests in the background ignore it
    )
    assert wait(lambda: set((cli.run_directory / "enclaves").glob("*")) != before)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out == ""
    assert wait(lambda: set((cli.run_directory / "enclaves").glob("*")) == before)


@pytest.mark.parametrize(
    ("arguments", "status", "begins"),
    [
        (["terminate-enclave", "--enclave-id", "i-0-enc0"], 11, "[ E11 ] "),
        (["terminate-enclave", "--enclave-name", "nobody"], 58, "[ E58 ] "),
        (["console", "--enclave-id", "i-0-enc0"], 11, "[ E11 ] "),
        (["run-enclave", "--eif-path", "HELLO", "--cpu-count", "1", "--memory", "63"], 26, "[ E26 ] "),
        (["run-enclave", "--eif-path", "HELLO", "--cpu-count", "1", "--memory", "1.5G"], 3, "[ E03 ] "),
        (["run-enclave", "--eif-path", "missing.eif", "--cpu-count", "1", "--memory", "128"], 19, "[ E19 ] "),
        (["run-enclave", "--eif-path", "DAMAGED", "--cpu-count", "1", "--memory", "128"], 35, "[ E35 ] "),
        (["run-enclave", "--eif-path", "EMPTY", "--cpu-count", "1", "--memory", "128"], 35, "[ E35 ] "),
        (["run-enclave", "--eif-path", "HELLO", "--cpu-count", "64000", "--memory", "256"], 22, "[ E22 ] "),
    ],
)
def test_bad_input_gets_one_line_and_aws_status(
    cli: Any, hello_eif: Path, arguments: list[str], status: int, begins: str
) -> None:
    """cli.md §4 and §5: the code in brackets, its number as the status, no traceback, nothing left behind."""
    damaged, empty = cli.directory / "damaged.eif", cli.directory / "empty.eif"
    data = bytearray(hello_eif.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    empty.write_bytes(b"")
    files = {"HELLO": str(hello_eif), "DAMAGED": str(damaged), "EMPTY": str(empty)}
    before = set((cli.run_directory / "enclaves").glob("*"))
    done = cli("nitro-cli", *[files.get(argument, argument) for argument in arguments])
    lines = [line for line in done.stderr.splitlines() if line != "Start allocating memory..."]
    assert done.returncode == status, done.stderr
    assert lines[0].startswith(begins)
    assert len(lines) <= 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert set((cli.run_directory / "enclaves").glob("*")) == before
    assert not list(cli.run_directory.glob("boot-*"))


def test_an_enclave_that_ends_by_itself_is_gone(cli: Any, hello_eif: Path) -> None:
    """Killing QEMU ends the supervisor, and the enclave is no longer listed."""
    started = cli.run_enclave(hello_eif)
    children = Path(f"/proc/{started['ProcessID']}/task/{started['ProcessID']}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    assert wait(lambda: not alive(started["ProcessID"]))
    assert started["EnclaveID"] not in [e["EnclaveID"] for e in cli.json("nitro-cli", "describe-enclaves")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
