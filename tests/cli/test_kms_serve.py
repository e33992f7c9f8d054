"""``alcove kms serve`` without any preparation, its Regions, and the log of its calls."""

from __future__ import annotations

import configparser
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.state_machine import BIN
from tests.cli.test_kms import Machine, client, refusal

pytestmark = pytest.mark.slow


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def credentials(machine: Machine) -> dict[str, str]:
    """The access key that the first start made."""
    file = machine.kms / "kms.credentials"
    assert file.stat().st_mode & 0o777 == 0o600
    found = configparser.ConfigParser()
    found.read_string(file.read_text())
    return {
        "AccessKeyId": found["default"]["aws_access_key_id"],
        "SecretAccessKey": found["default"]["aws_secret_access_key"],
    }


def test_the_first_start_makes_an_administrator(machine: Machine) -> None:
    """A server without any preparation has one user, who may make keys; the next start makes none."""
    with machine.serving() as url:
        admin = credentials(machine)
        assert client(url, admin).create_key()["KeyMetadata"]["Enabled"]
        assert "kms.credentials" in machine.process.stderr.readline()  # type: ignore[union-attr]
        said = machine.environment | {
            "AWS_ENDPOINT_URL_KMS": url, "AWS_SHARED_CREDENTIALS_FILE": str(machine.kms / "kms.credentials")
        }  # fmt: skip
        program = "import boto3; print(len(boto3.client('kms').list_keys()['Keys']))"
        done = subprocess.run([sys.executable, "-c", program], env=said, capture_output=True, text=True, check=True)
        assert done.stdout == "1\n"  # with nothing else exported
    machine.out("user", "remove", "admin")
    (machine.kms / "kms.credentials").unlink()  # there is a key, so whoever took all users away meant it
    with machine.serving() as url:
        assert refusal(client(url, admin).list_keys) == "UnrecognizedClientException"
    assert not (machine.kms / "kms.credentials").exists()
    assert machine.out("user", "list") == ""


def test_old_credentials_are_not_written_over(machine: Machine) -> None:
    """A file of credentials of an earlier store stays as it is, and nobody is made; the server says what to do."""
    machine.kms.mkdir(parents=True)
    (machine.kms / "kms.credentials").write_text("kept")
    process = subprocess.Popen(
        [BIN / "alcove", "kms", "serve", "--listen", "127.0.0.1:0"],
        cwd=machine.directory, env=machine.environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr
    try:
        assert "is of an earlier store" in process.stderr.readline()
        assert process.stderr.readline().startswith("listening on ")
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
    assert (machine.kms / "kms.credentials").read_text() == "kept"
    assert machine.out("user", "list") == ""


def test_a_start_that_fails_makes_nobody(machine: Machine) -> None:
    """The administrator is made when the server can serve, so that its first real start tells of it."""
    assert "cannot use" in machine.fails("serve", "--tls-cert", "nope", "--tls-key", "nope")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "already in use" in machine.fails("serve", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert not (machine.kms / "kms.credentials").exists()
    with machine.serving() as url:
        assert client(url, credentials(machine)).list_keys()["Keys"] == []


def test_several_regions_of_one_server(machine: Machine) -> None:
    """Each Region has keys of its own; a multi-Region key goes from one to another; others are refused."""
    with machine.serving("--region", "eu-central-1", "--region", "us-west-2") as url:
        admin = credentials(machine)
        here, there, nowhere = (client(url, admin, region=r) for r in ("eu-central-1", "us-west-2", "us-east-1"))
        key = here.create_key(MultiRegion=True)["KeyMetadata"]["KeyId"]
        sealed = here.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
        assert there.list_keys()["Keys"] == []
        here.replicate_key(KeyId=key, ReplicaRegion="us-west-2")
        assert there.decrypt(CiphertextBlob=sealed, KeyId=key)["Plaintext"] == b"x"
        assert refusal(nowhere.list_keys) == "InvalidSignatureException"
        for region in ("eu-central-1", "us-west-2", "us-east-1"):  # the last is the one of STS's global endpoint
            assert client(url, admin, "sts", region=region).get_caller_identity()["UserId"].startswith("AIDA")
        assert refusal(client(url, admin, "sts", region="eu-west-3").get_caller_identity) == "SignatureDoesNotMatch"
    assert "is no Region" in machine.fails("serve", "--region", "Europe")


@pytest.fixture
def log(machine: Machine) -> Path:
    """The log of four calls."""
    with machine.serving() as url:
        for number in range(1, 5):
            client(url, credentials(machine)).generate_random(NumberOfBytes=number)
    return machine.kms / "kms.audit.jsonl"


def test_an_unbroken_log(machine: Machine, log: Path) -> None:
    """Its length and its head are shown, and the head is found again after more calls; a torn line is only told."""
    before = json.loads(machine.out("audit", "verify", "--json"))
    assert (before["Records"], before["Torn"]) == (4, False)
    with machine.serving() as url:
        client(url, credentials(machine)).generate_random(NumberOfBytes=1)
        assert machine.out("audit", "verify", "--head", before["Head"]).startswith("5 records, unbroken; head 5:")
    with log.open("ab") as file:
        file.write(b'{"eventVersion"')
    done = machine.run("audit", "verify", "--json", log)
    assert (done.returncode, json.loads(done.stdout)["Torn"]) == (0, True)
    assert "incomplete" in done.stderr


def replaced(lines: list[bytes], number: int, record: Any) -> list[bytes]:
    """The lines with one record changed."""
    line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    return [*lines[: number - 1], line, *lines[number:]]


def test_every_change_of_a_log_is_seen(machine: Machine, log: Path) -> None:
    """Changed, cut out, moved, doubled, cut off or replaced as a whole: the first record that is wrong is named."""
    lines = log.read_bytes().splitlines(keepends=True)
    head = json.loads(machine.out("audit", "verify", "--json"))["Head"]
    changed = json.loads(lines[1]) | {"sourceIPAddress": "192.0.2.1"}
    cases: dict[str, tuple[list[bytes], int]] = {
        "changed": (replaced(lines, 2, changed), 3),
        "cut out": (lines[:1] + lines[2:], 2),
        "cut off in front": (lines[1:], 1),
        "moved": ([lines[0], lines[2], lines[1], lines[3]], 2),
        "doubled": ([*lines[:2], *lines[1:]], 3),
        "no JSON": ([*lines[:2], b"record\n", *lines[3:]], 3),
        "no record": ([*lines[:2], b"[[1]]\n", *lines[3:]], 3),
        "too long": ([*lines[:2], b" " * (1 << 21) + b"\n", *lines[3:]], 3),
    }
    for name, (broken, number) in cases.items():
        log.write_bytes(b"".join(broken))
        assert f"record {number} " in machine.fails("audit", "verify"), name
    log.write_bytes(b"".join(lines[:3]))
    assert "record 4 is missing" in machine.fails("audit", "verify")
    assert machine.out("audit", "verify", log).startswith("3 records, unbroken")  # nothing in the file alone can tell
    assert "record 4 is missing" in machine.fails("audit", "verify", log, "--head", head)
    with machine.serving():
        pass
    told = json.loads(log.read_bytes().splitlines()[-1])
    assert (told["eventName"], told["serviceEventDetails"]["expected"]) == ("AuditLogCut", head)
    assert machine.out("audit", "verify").startswith("4 records, unbroken")
    other = f"4:{'0' * 64}"
    log.write_bytes(b"".join(lines))
    assert "not the one that was noted" in machine.fails("audit", "verify", log, "--head", other)
    assert "NUMBER:HASH" in machine.fails("audit", "verify", "--head", "4")
    assert "there is no file" in machine.fails("audit", "verify", "nothing.jsonl")


def test_a_server_beyond_loopback_without_tls_warns(machine: Machine) -> None:
    """What KMS decrypts would cross the network in clear; on loopback there is nothing to warn of."""
    with machine.serving("--listen", "0.0.0.0:0"):
        said = machine.process.stderr
        assert said
        assert "in clear: give --tls-cert" in said.readline()
    with machine.serving("--listen", "127.0.0.1:0"):
        said = machine.process.stderr
    assert said
    assert "in clear" not in said.read()
