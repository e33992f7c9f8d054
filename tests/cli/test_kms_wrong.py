"""``alcove kms`` as somebody uses it who is wrong: places that are not there, files of others, stores in use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psycopg
import pytest
from tests.cli.state_machine import BIN
from tests.cli.test_kms import Machine
from tests.unit.kms.postgres_harness import cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("name", ["bad name", "x" * 65])
def test_a_wrong_name_makes_no_store(machine: Machine, name: str) -> None:
    """Nor does a policy that is none."""
    assert "is not a user name" in machine.fails("user", "add", name)
    bad = machine.file("bad.json", {})
    assert "cannot be used" in machine.fails("user", "add", "app", "--policy", bad)
    assert not machine.kms.exists()


def test_a_backup_makes_no_directory(machine: Machine) -> None:
    """A path that is not there may be a disk that is not mounted."""
    machine.out("user", "add", "boss")
    told = machine.fails("backup", "media/stick/kms.backup")
    assert "there is no directory media/stick" in told
    assert "hint: make it first" in told
    assert not (machine.directory / "media").exists()
    (machine.directory / "media" / "stick").mkdir(parents=True)
    machine.out("backup", "media/stick/kms.backup")
    assert "exists already" in machine.fails("backup", "media/stick")
    assert "there is no file" in machine.fails("restore", "media/stick", "--store", "sqlite:///other.sqlite")


@pytest.mark.parametrize("asked", [("lint",), ("explain", "--user", "boss", "--action", "kms:Decrypt", "--document")])
def test_policy_commands_end_with_2(machine: Machine, asked: tuple[str, ...]) -> None:
    """1 is an answer of theirs, so whatever goes wrong is 2: no such file, a directory, a name that cannot be."""
    machine.out("user", "add", "boss")
    for name in ("none.json", ".", "n" * 300):
        machine.fails("policy", *asked, name, status=2)


def test_what_is_in_the_way_of_a_store(machine: Machine) -> None:
    """A file where its directory should be, a directory in its place, and something else in its file."""
    machine.file("file", "text")
    for store, words in (
        ("file/kms.sqlite", "file is not a directory"),
        (".", "unable to open database file"),
        ("file", "file is not a database"),
    ):
        told = machine.fails("user", "add", "boss", "--store", f"sqlite:///{machine.directory}/{store}")
        assert words in told
        assert "Errno" not in told


def test_files_of_another_user(machine: Machine) -> None:
    """Who may not read the store is told so, and whose it is; a backup likewise."""
    machine.out("user", "add", "boss")
    machine.out("backup", "kms.backup")
    if os.geteuid() == 0:  # without what lets root read everything
        machine.prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    (machine.directory / "kms.backup").chmod(0)
    assert "cannot read" in machine.fails("restore", "kms.backup", "--store", "sqlite:///other.sqlite")
    (machine.kms / "kms.sqlite").chmod(0)
    for command in (("user", "list"), ("backup", "another"), ("audit", "verify"), ("root", "init")):
        assert "permission denied" in machine.fails(*command)
    machine.kms.chmod(0)
    try:
        assert "permission denied" in machine.fails("policy", "lint", "alias/app", status=2)
    finally:
        machine.kms.chmod(0o700)


def test_a_second_server_of_one_store(machine: Machine) -> None:
    """It is refused while the first goes on, and so is a new root key; users and backups are not."""
    with machine.serving():
        assert "is another KMS running?" in machine.fails("serve", "--listen", "127.0.0.1:0")
        assert "is in use" in machine.fails("root", "rotate")
        machine.out("user", "add", "app")
        machine.out("backup", "kms.backup")


def test_ctrl_c_ends_a_server_well(machine: Machine) -> None:
    """Status 0 and nothing said, as for SIGTERM; with several workers too."""
    for workers in ("1", "2"):
        command = [BIN / "alcove", "kms", "serve", "--listen", "127.0.0.1:0", "--workers", workers]
        with subprocess.Popen(
            command, cwd=machine.directory, env=machine.environment, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stderr
            assert process.stderr.readline().startswith("listening on ")
            os.killpg(process.pid, signal.SIGINT)  # a terminal tells every process of the group
            assert process.wait(timeout=60) == 0
            assert [line for line in process.stderr if "administrator" not in line] == []


def test_a_disk_without_room(machine: Machine) -> None:
    """One line when the store can take no more, and what was there is there still."""
    machine.out("user", "add", "boss")
    machine.prefix = ("prlimit", "--fsize=40000")  # bytes of a file, beyond which nothing is written
    allow = {"Sid": "a" * 30_000, "Effect": "Allow", "Action": "kms:*", "Resource": "*"}
    long = machine.file("long.json", {"Version": "2012-10-17", "Statement": allow})
    told = machine.fails("user", "policy", "boss", *("--policy", long) * 3)
    assert told.startswith("alcove: error: cannot use the store: ")
    machine.prefix = ()
    assert json.loads(machine.out("user", "policy", "boss")) == []


def test_a_database_that_nobody_may_write_to(machine: Machine) -> None:
    """A standby, or one that was made read-only: every command and a server say so in one line."""
    with cluster() as server:
        url = server.new_database()
        machine.out("user", "add", "boss", "--store", url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET default_transaction_read_only=on")
        assert machine.out("user", "list", "--store", url).startswith("boss")
        for command in (
            ("user", "add", "app"),
            ("serve", "--listen", "127.0.0.1:0"),
            ("serve", "--listen", "127.0.0.1:0", "--workers", "2"),
        ):
            told = machine.fails(*command, "--store", url)
            assert "read-only" in told, told
            assert "hint: it may be a standby" in told
    assert "cannot open the store" in machine.fails("user", "list", "--store", url)
