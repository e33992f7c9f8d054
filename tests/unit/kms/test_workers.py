"""Several workers, rolling restarts, and what is left after a kill in the middle of writing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.kms.conftest import NewStore
from tests.unit.kms.postgres_harness import cluster
from tests.unit.kms.server_harness import client
from tests.unit.kms.storm import PROGRAM, Storm, serving

from alcove.kms.audit import AuditLog, inspect_log
from alcove.kms.postgres_store import BOUND
from alcove.kms.stores import open_store
from alcove.kms.users import NewUser, add_user

pytestmark = pytest.mark.slow
WORKERS = 2


@pytest.fixture
def place(tmp_path: Path, new_store: NewStore) -> tuple[str, NewUser]:
    """A store with an administrator."""
    url = new_store(tmp_path)
    with contextlib.closing(open_store(url, tmp_path / "root.key")) as store:
        return url, add_user(store, "admin", admin=True)


def until(true: object, seconds: float = 60) -> Iterator[None]:
    """Goes on while something is not yet so, and not for ever."""
    end = time.monotonic() + seconds
    while True:
        assert time.monotonic() < end, true
        yield
        time.sleep(0.02)


def check(storm: Storm, url: str) -> None:
    """Everything that was acknowledged is there, and every key opens what it sealed."""
    time.sleep(BOUND)  # for which a server of several on PostgreSQL may remember an older description
    kms = client(url, storm.user)
    assert storm.acknowledged
    for key_id, (description, sealed) in storm.acknowledged.items():
        found = kms.describe_key(KeyId=key_id)["KeyMetadata"]
        assert found["Description"] in {description, "changed"}  # what was under way may have happened too
        assert kms.decrypt(CiphertextBlob=sealed)["Plaintext"] == key_id.encode()


def check_logs(directory: Path, workers: int) -> int:
    """Every worker's chain holds; the number of records in all."""
    logs = sorted(directory.glob("audit*.jsonl"))
    assert len(logs) == workers
    return sum(inspect_log(path.read_bytes().splitlines(keepends=True)).records for path in logs)


def test_workers_share_the_work(tmp_path: Path, place: tuple[str, NewUser]) -> None:
    """Each answers, each keeps a chain of its own that verifies, and SIGTERM ends them all with status 0."""
    with serving(place[0], tmp_path, WORKERS) as server:
        assert len(server.workers()) == WORKERS
        for _ in until("both workers have answered"):
            client(server.url, place[1]).list_keys()
            if all(path.stat().st_size for path in tmp_path.glob("audit*.jsonl")):
                break
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
    assert check_logs(tmp_path, WORKERS) >= WORKERS


def test_a_rolling_restart_loses_nothing(tmp_path: Path, place: tuple[str, NewUser]) -> None:
    """SIGHUP under a write storm replaces every worker; what was acknowledged is there, and no answer was a fault."""
    with serving(place[0], tmp_path, WORKERS) as server:
        storm = Storm(server.url, place[1])
        with storm.raging():
            storm.wait(20)
            first = server.workers()
            server.process.send_signal(signal.SIGHUP)
            for _ in until("every worker was replaced"):
                now = server.workers()
                if len(now) == WORKERS and not now & first:
                    break
            storm.wait(20)
        assert storm.refused == []
        check(storm, server.url)
    check_logs(tmp_path, WORKERS)


def test_a_worker_that_dies_is_replaced(tmp_path: Path, place: tuple[str, NewUser]) -> None:
    """A kill of one worker under a write storm costs no acknowledged write, and the service goes on."""
    with serving(place[0], tmp_path, WORKERS) as server:
        storm = Storm(server.url, place[1])
        with storm.raging():
            storm.wait(10)
            victim = min(server.workers())
            os.kill(victim, signal.SIGKILL)
            for _ in until("the dead worker was replaced"):
                now = server.workers()
                if len(now) == WORKERS and victim not in now:
                    break
            storm.wait(10)
        check(storm, server.url)
    check_logs(tmp_path, WORKERS)


def test_workers_end_with_their_supervisor(tmp_path: Path, place: tuple[str, NewUser]) -> None:
    """When the supervisor is killed, nobody is left behind."""
    with serving(place[0], tmp_path, WORKERS) as server:
        orphans = server.workers()
        server.process.kill()
        server.process.wait()
        for _ in until("the workers are gone"):
            if not any(Path(f"/proc/{process}/cmdline").exists() for process in orphans):
                break


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_a_kill_in_the_middle_of_a_storm(tmp_path: Path, place: tuple[str, NewUser], workers: int) -> None:
    """SIGKILL for everything: after a restart every acknowledged write is there and every key decrypts."""
    with serving(place[0], tmp_path, workers) as server:
        storm = Storm(server.url, place[1])
        with storm.raging():
            storm.wait(30)
            server.kill()
    with serving(place[0], tmp_path, workers) as server:
        check(storm, server.url)
    assert check_logs(tmp_path, workers) > len(storm.acknowledged)


def test_a_kill_of_the_database_in_the_middle_of_a_storm(tmp_path: Path) -> None:
    """PostgreSQL and the KMS are killed together, and both come back: nothing that was acknowledged is missing."""
    with cluster() as database:
        url = database.new_database()
        with contextlib.closing(open_store(url, tmp_path / "root.key")) as store:
            user = add_user(store, "admin", admin=True)
        with serving(url, tmp_path, WORKERS) as server:
            storm = Storm(server.url, user)
            with storm.raging():
                storm.wait(30)
                database.kill(signal.SIGKILL)
                server.kill()
        database.start()
        with serving(url, tmp_path, WORKERS) as server:
            check(storm, server.url)


def test_a_worker_that_cannot_start_is_one_line(tmp_path: Path, place: tuple[str, NewUser]) -> None:
    """Why it cannot is said by the command that was to start it, which then ends, with every other worker."""
    with contextlib.closing(AuditLog(tmp_path / "audit.2.jsonl")):
        argv = [sys.executable, "-c", PROGRAM, place[0], str(tmp_path), str(WORKERS)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert ended.returncode == 1
    assert "audit.2.jsonl is in use" in ended.stderr
