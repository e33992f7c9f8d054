"""Attested KMS and documents for ordinary programs, in one real enclave that the key names: examples/kms-clients."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from alcove.attestation import PCR, verify
from alcove.attestation.authority import Authority
from alcove.enclave.allocator import required_mib
from alcove.enclave.paths import Paths
from alcove.testing import LocalKms

EXAMPLE = Path(__file__).parents[2] / "examples" / "kms-clients"
NAME = "kms.alcove.test"
AS_APP = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION")
BOOT_SECONDS = 400


@dataclass
class Enclave:
    """The running enclave, with what its programs need."""

    cli: Any
    kms: LocalKms
    started: dict[str, Any]
    pcr0: str

    def say(self, port: int, text: str) -> str:
        """What the enclave answers on a port, once it is up."""
        done = subprocess.run(
            self.cli.command("alcove", "connect", self.started["EnclaveCID"], port, "--wait", BOOT_SECONDS),
            input=text, env=self.cli.environment, capture_output=True, text=True, check=False,
            timeout=BOOT_SECONDS + 300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, program: str, key: str) -> dict[str, Any]:
        """Run one of the image's programs to its end."""
        environment = {name: self.kms.environment[name] for name in AS_APP}
        environment["AWS_ENDPOINT_URL_KMS"] = f"https://{NAME}:{self.kms.port}"
        request = {"run": program, "key": key, "environment": environment}
        answer: dict[str, Any] = json.loads(self.say(5000, json.dumps(request) + "\n"))
        return answer

    def data_key(self, program: str, key: str) -> dict[str, Any]:
        """What a program said of its data key, and that it went well."""
        answer = self.run(program, key)
        assert answer["status"] == 0, answer["stderr"]
        found: dict[str, Any] = json.loads(answer["stdout"])
        return found


def build(cli: Any, kms: LocalKms, directory: Path) -> tuple[Path, str]:
    """The image, and its PCR0."""
    shutil.copytree(EXAMPLE, directory)
    made = cli("alcove", "rootfs", directory / "rootfs.tar", *("--with", "boto3", "--with", "node", "--with", "shell"))
    assert made.returncode == 0, made.stderr
    subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=directory, check=True, timeout=300)
    shutil.copy(kms.ca_file, directory / "ca.pem")
    eif = directory / "image.eif"
    built = cli.json(
        "nitro-cli",
        "build-enclave",
        "--docker-dir",
        directory,
        "--docker-uri",
        "kms-clients:test",
        "--output-file",
        eif,
    )
    return eif, built["Measurements"]["PCR0"]


@pytest.fixture(scope="module")
def enclave(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    """The enclave, not in debug mode, with a KMS, a vsock-proxy and an egress relay on its parent."""
    if shutil.which("npm") is None:
        pytest.skip("npm is missing: scripts/setup --tests")
    directory = tmp_path_factory.mktemp("kms-clients")
    roots = Authority.open(Paths.from_environment().authority).trusted
    with ExitStack() as stack:
        (directory / "kms").mkdir()
        kms = stack.enter_context(LocalKms(directory / "kms", roots, names=[NAME]))
        eif, pcr0 = build(cli, kms, directory / "image")
        (directory / "allow.yaml").write_text(f"allowlist:\n- {{address: 127.0.0.1, port: {kms.port}}}\n")
        (directory / "parent.rules").write_text(f"allow {NAME}:{kms.port}\nallow 127.0.0.1:{kms.port}\n")
        for command in (
            ("vsock-proxy", "8000", "127.0.0.1", kms.port, "--config", directory / "allow.yaml"),
            ("alcove", "egress-relay", "--rules", directory / "parent.rules", "--resolve", f"{NAME}=127.0.0.1"),
        ):
            program = subprocess.Popen(cli.command(*command), env=cli.environment, stderr=subprocess.DEVNULL)
            stack.callback(program.wait, 30)
            stack.callback(program.terminate)
        memory = max(1024, required_mib(eif.stat().st_size))
        started = cli.run_enclave(eif, memory=memory)
        stack.callback(cli.terminate, started)
        yield Enclave(cli, kms, started, pcr0)


def attested_by(enclave: Enclave, operations: list[str]) -> None:
    """KMS saw these calls last, each with a document of this enclave and this image."""
    records = enclave.kms.records()[-len(operations) :]
    assert [record["eventName"] for record in records] == operations
    for record in records:
        recipient = record["additionalEventData"]["recipient"]
        assert recipient["attestationDocumentModuleId"] == enclave.started["EnclaveID"]
        assert recipient["attestationDocumentEnclaveImageDigest"] == enclave.pcr0


def test_a_boto3_program_that_says_install_gets_a_data_key(enclave: Enclave) -> None:
    """Plain boto3 through the egress proxy: GenerateDataKey and Decrypt, attested, with the image's PCR0."""
    key = enclave.kms.create_key({"PCR0": enclave.pcr0})
    found = enclave.data_key("python", key)
    assert found["key_id"] == key
    assert re.fullmatch("[0-9a-f]{64}", found["sha256"])
    attested_by(enclave, ["GenerateDataKey", "Decrypt"])


def test_a_node_program_gets_a_data_key_through_the_proxy(enclave: Enclave) -> None:
    """AWS's SDK for JavaScript below `alcove-enclave kms-proxy`, and it knows nothing of enclaves."""
    key = enclave.kms.create_key({"PCR0": enclave.pcr0})
    found = enclave.data_key("node", key)
    assert found["key_id"] == key
    assert re.fullmatch("[0-9a-f]{64}", found["sha256"])
    attested_by(enclave, ["GenerateDataKey", "Decrypt"])


def test_a_shell_script_uses_kmstool(enclave: Enclave) -> None:
    """genkey, decrypt and genrandom of kmstool_enclave_cli, with their output cut as AWS's samples cut it."""
    key = enclave.kms.create_key({"PCR0": enclave.pcr0})
    found = enclave.data_key("shell", key)
    assert found["random_bytes"] == 32
    assert found["sha256"] != hashlib.sha256(b"").hexdigest()
    assert base64.b64decode(found["ciphertext"], validate=True)
    attested_by(enclave, ["GenerateDataKey", "Decrypt", "GenerateRandom"])


@pytest.mark.parametrize("program", ["node", "shell"])  # boto3's refusals are tests/unit/sdk/test_boto3.py's
def test_another_image_s_key_is_refused_to_each(enclave: Enclave, program: str) -> None:
    """A key whose policy names another PCR0: each program ends with KMS's own refusal, and gives nothing."""
    key = enclave.kms.create_key({"PCR0": "ab" * 48})
    answer = enclave.run(program, key)
    assert answer["status"] not in (0, -1)
    assert "AccessDenied" in answer["stderr"]
    assert "Traceback" not in answer["stderr"]
    assert answer["stdout"] == ""


def test_a_parent_that_speaks_kmstool_s_protocol_is_served(enclave: Enclave) -> None:
    """SetClient and Decrypt on vsock port 3000: NUL after each, the plaintext back, attested."""
    key = enclave.kms.create_key({"PCR0": enclave.pcr0})
    given = enclave.kms.environment
    credentials = {"AwsAccessKeyId": given["AWS_ACCESS_KEY_ID"], "AwsSecretAccessKey": given["AWS_SECRET_ACCESS_KEY"]}
    requests = (
        {"Operation": "SetClient", **credentials, "AwsRegion": enclave.kms.region},
        {"Operation": "Decrypt", "Ciphertext": enclave.kms.encrypt(key, b"secret")},
    )
    said = enclave.say(3000, "".join(f"{json.dumps(request)}\0" for request in requests))
    replies = [json.loads(reply) for reply in said.split("\0")[:-1]]
    assert replies == [{"Status": "Ok"}, {"Status": "Ok", "Message": base64.b64encode(b"secret").decode()}]
    attested_by(enclave, ["Decrypt"])


def test_a_document_for_a_program_that_speaks_http(enclave: Enclave) -> None:
    """Busybox's wget gets one from the attestation server, and the verifier accepts it under this machine's root."""
    answer = enclave.run("document", "00112233")
    assert answer["status"] == 0, answer["stderr"]
    verified = verify(
        base64.b64decode(answer["stdout"]),
        roots=Authority.load(Paths.from_environment().authority).trusted,
        policy=PCR(0, bytes.fromhex(enclave.pcr0)),
        at=datetime.now(UTC),
        nonce=bytes.fromhex("00112233"),
    )
    assert verified.document.module_id == enclave.started["EnclaveID"]
