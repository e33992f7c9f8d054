from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alcove.devices.unix_path import listen
from alcove.enclave import ended, lifecycle, registry
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.errors import MachineError

ENCLAVE_ID = "i-0123456789abcdef0-enc0000000000000001"
# Reserves like a supervisor, and ends when it is told to; nobody listens at its control socket.
SUPERVISOR = """
import os, socket, sys
from pathlib import Path
from alcove.enclave import registry
from alcove.enclave.record import Record
from alcove.enclave.paths import Paths
paths = Paths(Path(sys.argv[1]), Path(sys.argv[1]), Path(sys.argv[1]))
def decide(others):
    return Record(sys.argv[2], "app", 16, (0,), 64, os.getpid(), True)
def furnish(files):
    socket.socket(socket.AF_UNIX).bind(str(files.control))
record, lock = registry.reserve(paths, sys.argv[2], decide, furnish)
print(flush=True)
sys.stdin.readline()
registry.release(paths, record, lock)
"""


@pytest.fixture
def paths() -> Iterator[Paths]:
    with tempfile.TemporaryDirectory() as name:  # a socket's path is at most 107 bytes long
        yield Paths(Path(name), Path(name), Path(name))


@pytest.fixture
def supervisor(paths: Paths) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that holds an enclave and answers nobody."""
    processes = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(paths.run), ENCLAVE_ID],
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
    paths: Paths, supervisor: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """describe-enclaves waits for a supervisor that refuses connections to be gone, and then lists nothing."""
    process = supervisor()
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
    paths: Paths, supervisor: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted by describe-enclaves, and E39 for terminate-enclave, which says which process to kill."""
    process = supervisor()
    monkeypatch.setattr(lifecycle, "_END_SECONDS", 0.01)
    assert lifecycle.describe_enclaves(paths, metadata=False) == ([], 1)
    (record,) = registry.live(paths)
    with pytest.raises(MachineError, match="did not end") as caught:
        lifecycle.terminate_enclave(paths, record)
    assert (caught.value.code, caught.value.hint) == ("E39", f"kill {process.pid}")


@pytest.mark.parametrize("killed", [True, False])
def test_terminate_is_content_with_an_enclave_that_has_ended(
    paths: Paths, supervisor: Callable[[], subprocess.Popen[str]], *, killed: bool
) -> None:
    """It ended between the look and the question, by itself or killed: there is nothing left to do."""
    process = supervisor()
    (record,) = registry.live(paths)
    if killed:
        process.kill()
    process.communicate(None if killed else "\n")
    assert lifecycle.terminate_enclave(paths, record)["Terminated"] is True


RECORD = Record(ENCLAVE_ID, "app", 16, (0,), 64, os.getpid(), debug_mode=True)


def note_the_end(paths: Paths, console: bytes) -> None:
    """As its supervisor does before it lets go of an enclave."""
    paths.run.mkdir(exist_ok=True)
    ended.save(paths, RECORD, ended.End(ended.Cause.EXITED, "it ended", 0), None, console)


def test_the_console_of_an_enclave_that_has_just_ended_is_what_was_kept(paths: Paths) -> None:
    """It ended after it was found: those who attach to an application that ends at once see all it said."""
    note_the_end(paths, b"all it said")
    assert list(lifecycle.console(paths, RECORD)) == [b"", b"all it said"]


def test_a_console_that_ends_before_it_is_taken_is_what_was_kept(
    paths: Paths, supervisor: Callable[[], subprocess.Popen[str]]
) -> None:
    """The supervisor ends with our connection in its queue."""
    process = supervisor()
    (record,) = registry.live(paths)
    listener = listen(paths.enclave(ENCLAVE_ID).console)
    chunks = lifecycle.console(paths, record)
    assert next(chunks) == b""
    note_the_end(paths, b"kept")
    listener.close()
    process.communicate("\n")
    assert list(chunks) == [b"kept"]


def test_a_console_that_is_about_to_be_there_is_waited_for(
    paths: Paths, supervisor: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An enclave is listed a moment before it has its console; one that never gets it is E44."""
    supervisor()
    (record,) = registry.live(paths)
    made: list[socket.socket] = []

    def appear(_: float) -> None:
        made.append(listen(paths.enclave(ENCLAVE_ID).console))

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle.time, "sleep", appear)
        assert next(lifecycle.console(paths, record, 30)) == b""
    made[0].close()
    monkeypatch.setattr(lifecycle, "_CONSOLE_SECONDS", 0)
    with pytest.raises(MachineError, match="no console") as caught:
        next(lifecycle.console(paths, record))
    assert caught.value.code == "E44"


def test_a_console_that_breaks_off_is_e45() -> None:
    """After what came before; a reset without a byte is the end of a connection that was never taken."""
    for said in (b"", b"half a line"):
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(b"unread: the other end's close is a reset")
            theirs.sendall(said)
            theirs.close()
            chunks = lifecycle._received(ours, float("inf"))
            if said:
                assert next(chunks) == said
                with pytest.raises(MachineError) as caught:
                    next(chunks)
                assert caught.value.code == "E45"
            else:
                assert list(chunks) == []


def test_a_refused_reservation_leaves_no_socket(paths: Paths) -> None:
    """Neither does one whose first file cannot be made: the directory is never seen."""

    def furnish(_: object) -> None:
        raise MachineError("no room", code="E11")

    with pytest.raises(MachineError, match="no room"):
        registry.reserve(paths, ENCLAVE_ID, lambda _: RECORD, furnish)
    assert list(paths.enclaves.iterdir()) == []
    assert list(paths.cids.iterdir()) == []
