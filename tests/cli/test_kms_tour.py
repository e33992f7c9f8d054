"""The tour of every operation with unmodified clients, and what it leaves in the files: no byte of any key."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_kms import Machine

from alcove.kms.model import kms_model
from alcove.kms.rootplace import RootPlace
from alcove.kms.sqlite_store import open_store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "kms-tour"
AWS = ROOT / ".peers" / "aws"
REGIONS = ("us-east-1", "eu-west-1")
OWN = {"kms.root-key", "kms.credentials"}  # the two files that hold secrets, for their owner


@dataclass(frozen=True)
class Visit:
    """What both tours left: their outputs, the files of the service while it ran, and every secret of its store."""

    outputs: dict[str, str]
    files: dict[str, bytes]
    records: list[dict[str, Any]]
    secrets: dict[str, bytes]

    def operations(self, agent: str) -> set[str]:
        """The operations of the KMS that clients of this kind called."""
        mine = [r for r in self.records if r["userAgent"].startswith(agent)]
        return {r["eventName"] for r in mine if r["eventSource"] == "kms.amazonaws.com"}


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """Both tours at once, on a server without any preparation but the role that they take on."""
    if not (AWS / "bin" / "aws").exists():
        pytest.skip("scripts/setup --tests installs the AWS CLI")
    machine = Machine(tmp_path_factory.mktemp("tour"))
    with machine.serving(*(word for name in REGIONS for word in ("--region", name))) as url:
        machine.out("role", "add", "tourist", "--trust", "admin", "--admin")
        commands = {"boto3": [sys.executable, EXAMPLE / "tour.py"], "aws": [EXAMPLE / "tour.sh"]}
        outputs = dict(touring(machine, commands, url))
        machine.out("backup", "kms.backup")
        files = {path.name: path.read_bytes() for path in machine.kms.iterdir() if path.name not in OWN}
        secrets = dict(secrets_of(machine))
    assert machine.process.stderr
    files |= {
        "stderr": machine.process.stderr.read().encode(),
        "backup": (machine.directory / "kms.backup").read_bytes(),
    }
    records = [json.loads(line) for line in files["kms.audit.jsonl"].splitlines()]
    return Visit(outputs, files, records, secrets)


def touring(machine: Machine, commands: dict[str, list[Any]], url: str) -> Iterator[tuple[str, str]]:
    """The output of each command; all run at the same time."""
    environment = machine.environment | {
        "AWS": str(AWS / "bin" / "aws"),
        "AWS_DEFAULT_REGION": REGIONS[0],
        "AWS_ENDPOINT_URL_KMS": url,
        "AWS_ENDPOINT_URL_STS": url,
        "AWS_SHARED_CREDENTIALS_FILE": str(machine.kms / "kms.credentials"),
        "HOME": str(machine.directory),
    }
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(
                subprocess.Popen(
                    command, cwd=machine.directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            for name, command in commands.items()
        }  # fmt: skip
        for name, process in running.items():
            output = process.communicate(timeout=900)[0]
            assert process.returncode == 0, output
            yield name, output


def secrets_of(machine: Machine) -> Iterator[tuple[str, bytes]]:
    """The root key, every key's every material, every access key's secret, and the secrets of the store itself."""
    place = RootPlace.of(machine.kms / "kms.root-key")
    yield "root key", place.load().export()
    with contextlib.closing(open_store(f"sqlite:///{machine.kms}/kms.sqlite", place)) as store:
        for region in REGIONS:
            for key in store.keys(region, "", 1000):
                for material in store.materials(key):
                    secret = store.material(key, material.material_id)
                    if secret:
                        yield f"{region} {key.key_id} {key.spec} {material.number}", secret
        for name in store.access_key_ids("admin"):
            access_key = store.access_key(name)
            assert access_key
            yield "access key", access_key.secret.encode()
        for label in ("material ids", "grant tokens", "sts sessions"):
            yield label, store.secret(label)


def forms(secret: bytes) -> Iterator[bytes]:
    """A secret as it is, in hexadecimal, and in base64 at each of the three places where it could begin in a text."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for shift in range(3):
        whole = base64.b64encode(bytes(shift) + secret)
        inner = whole[4:-4] if shift else whole.rstrip(b"=")[:-1]
        yield inner
        yield inner.translate(bytes.maketrans(b"+/", b"-_"))
    lines = base64.encodebytes(secret).replace(b"\n", b"")
    if len(lines) > 64:  # PEM's lines; the last whole one has what only the private half has
        yield lines[: len(lines) // 64 * 64][-64:]


def test_boto3_calls_every_operation(visit: Visit) -> None:
    """Unmodified, with all of its own model; those on custom key stores are refused as AWS refuses them."""
    assert visit.operations("Boto3/") == kms_model().operations
    assert "56 operations" in visit.outputs["boto3"] or len(kms_model().operations) != 56


def test_the_aws_cli_calls_every_operation(visit: Visit) -> None:
    """Unmodified, in an environment of its own, with all of its own model."""
    (model,) = AWS.glob("lib/*/site-packages/awscli/botocore/data/kms/*/service-2.json")
    assert visit.operations("aws-cli/") == set(json.loads(model.read_bytes())["operations"])
    assert visit.outputs["aws"].splitlines()[-1].startswith("the end")


def test_no_byte_of_a_key_is_in_the_files(visit: Visit) -> None:
    """Neither in the database, its log, a backup, the audit log nor the server's output; in no form."""
    specs = {name.split()[2] for name in visit.secrets if " " in name and "-" in name.split()[0]}
    assert specs >= {"SYMMETRIC_DEFAULT", "RSA_2048", "ECC_NIST_P256", "HMAC_512", "ML_DSA_44", "ML_KEM_768"}
    assert {"kms.sqlite", "kms.sqlite-wal", "kms.audit.jsonl", "backup", "stderr"} <= set(visit.files)
    assert visit.files["kms.sqlite-wal"]
    searched = {**visit.files, **{f"output of {name}": text.encode() for name, text in visit.outputs.items()}}
    found = [
        f"{name} in {file}"
        for name, secret in visit.secrets.items()
        for form in forms(secret)
        for file, content in searched.items()
        if form in content
    ]
    assert found == []


def test_the_search_finds_what_is_there() -> None:
    """Each form of a secret is found in a text that has it, wherever it begins."""
    secret = os.urandom(1216)
    pem = base64.encodebytes(secret).replace(b"\n", b"")
    lines = b"\n".join(pem[i : i + 64] for i in range(0, len(pem), 64))
    texts = [b"x" + secret, b"x" + secret.hex().encode(), lines]
    texts += [base64.b64encode(os.urandom(n) + secret + b"tail") for n in range(7)]
    texts += [base64.urlsafe_b64encode(os.urandom(n) + secret + b"tail") for n in range(7)]
    for text in texts:
        assert any(form in text for form in forms(secret))
