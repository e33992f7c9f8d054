from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alcove.enclave import lifecycle, registry
from alcove.enclave.control import NobodyListensError
from alcove.enclave.paths import Paths
from alcove.errors import MachineError

ENCLAVE_ID = "i-0123456789abcdef0-enc0000000000000001"
# Reserves like a supervisor, and ends when it is told to; nobody serves its control socket, where it has one.
SUPERVISOR = """
import os, socket, sys
from pathlib import Path
from alcove.enclave import registry
from alcove.enclave.record import Record
from alcove.enclave.paths import Paths
paths = Paths(Path(sys.argv[1]), Path(sys.argv[1]), Path(sys.argv[1]))
def decide(others):
    return Record(sys.argv[2], "app", 16, (0,), 64, os.getpid(), False)
record, lock = registry.reserve(paths, sys.argv[2], decide)
if sys.argv[3] == "ending":
    socket.socket(socket.AF_UNIX).bind(str(paths.enclave(sys.argv[2]).control))
print(flush=True)
sys.stdin.readline()
registry.release(paths, record, lock)
"""


@pytest.fixture
def paths() -> Iterator[Paths]:
    with tempfile.TemporaryDirectory() as name:  # a socket's path is at most 107 bytes long
        yield Paths(Path(name), Path(name), Path(name))


@pytest.fixture
def supervisor(paths: Paths) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a process that holds an enclave and answers nobody."""
    processes = []

    def start(state: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(paths.run), ENCLAVE_ID, state],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_an_enclave_that_ends_meanwhile_is_no_failure(
    paths: Paths, supervisor: Callable[[str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """describe-enclaves waits for a supervisor that refuses connections to be gone, and then lists nothing."""
    process = supervisor("ending")
    watched, watch = [], os.pidfd_open

    def pidfd_open(process_id: int) -> int:
        watched.append(process_id)
        assert process.stdin is not None
        process.stdin.write("\n")  # only who waits for it lets it end
        process.stdin.flush()
        return watch(process_id)

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    assert lifecycle.describe_enclaves(paths, metadata=False) == ([], 0)
    assert watched == [process.pid]
    assert not paths.enclave(ENCLAVE_ID).directory.exists()


def test_a_supervisor_that_neither_answers_nor_ends_is_a_failure(
    paths: Paths, supervisor: Callable[[str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted by describe-enclaves, and E39 for terminate-enclave, which says which process to kill."""
    process = supervisor("ending")
    monkeypatch.setattr(lifecycle, "_END_SECONDS", 0.01)
    assert lifecycle.describe_enclaves(paths, metadata=False) == ([], 1)
    (record,) = registry.live(paths)
    with pytest.raises(MachineError, match="did not end") as caught:
        lifecycle.terminate_enclave(paths, record)
    assert (caught.value.code, caught.value.hint) == ("E39", f"kill {process.pid}")


def test_an_enclave_that_starts_is_no_failure_and_cannot_be_ended(
    paths: Paths, supervisor: Callable[[str], subprocess.Popen[str]]
) -> None:
    """Its control socket comes later: it is not listed, and terminate-enclave says so at once."""
    supervisor("starting")
    assert lifecycle.describe_enclaves(paths, metadata=False) == ([], 0)
    (record,) = registry.live(paths)
    with pytest.raises(NobodyListensError):
        lifecycle.terminate_enclave(paths, record)


@pytest.mark.parametrize("killed", [True, False])
def test_terminate_is_content_with_an_enclave_that_has_ended(
    paths: Paths, supervisor: Callable[[str], subprocess.Popen[str]], *, killed: bool
) -> None:
    """It ended between the look and the question, by itself or killed: there is nothing left to do."""
    process = supervisor("ending")
    (record,) = registry.live(paths)
    if killed:
        process.kill()
    process.communicate(None if killed else "\n")
    assert lifecycle.terminate_enclave(paths, record)["Terminated"] is True
