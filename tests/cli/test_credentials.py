"""`alcove credentials`: a KMS user of ours takes a role on for an enclave; what cannot be is one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from alcove.devices.vsock.handshake import peer_name
from alcove.enclave import registry
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.types import Cid, Port

ALCOVE = Path(sys.executable).parent / "alcove"
ENCLAVE = "i-0123456789abcdef0-enc0123456789abcdef"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Directories of the test's own, and no credentials."""
    with tempfile.TemporaryDirectory(prefix="cr-") as name:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        yield kept | {
            "ALCOVE_RUN": f"{name}/run",
            "ALCOVE_STATE": f"{name}/state",
            "ALCOVE_CONFIG": f"{name}/config",
            "AWS_CONFIG_FILE": f"{name}/aws",
            "AWS_SHARED_CREDENTIALS_FILE": f"{name}/aws",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def alcove(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [ALCOVE, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert "Traceback" not in done.stderr
    return done


def ask_as(cid: int, run: str) -> bytes:
    """What the enclave with this CID gets."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(60)
        stream.bind(peer_name(Cid(cid), Port(1), os.urandom(8).hex()))
        stream.connect(f"{run}/vsock/9040.sock")
        stream.sendall(b"GET /credentials HTTP/1.1\r\n\r\n")
        return stream.makefile("rb").read()


def test_what_cannot_be_is_one_line(environment: dict[str, str]) -> None:
    """No credentials, an access key that does not end, a bad measurement or duration: said at the start."""
    for flags, extra, words in (
        ((), {}, "there are no credentials"),
        ((), {"AWS_ACCESS_KEY_ID": "AKIA0", "AWS_SECRET_ACCESS_KEY": "s"}, "the access key AKIA0 does not end"),
        (("--pcr0", "00"), {}, "PCR0 is 96 hex digits"),
        (("--duration", "1"), {}, "--duration is from 900"),
        (("--profile", "none"), {}, "there are no credentials: The config profile (none) could not be found"),
    ):
        done = alcove(environment | extra, "credentials", "--enclave", "app", *flags)
        assert done.returncode == 1
        assert done.stderr.startswith(f"alcove: error: {words}"), done.stderr
        assert " s\n" not in done.stderr


def test_a_user_of_our_kms_takes_a_role_on_for_an_enclave(environment: dict[str, str]) -> None:
    """The chosen enclave gets the role's short-lived key; another, and a program of the parent, get none."""
    user = json.loads(alcove(environment, "kms", "user", "add", "parent", "--json").stdout)
    role = json.loads(alcove(environment, "kms", "role", "add", "app", "--trust", "parent", "--json").stdout)
    keys = {"AWS_ACCESS_KEY_ID": user["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": user["SecretAccessKey"]}
    serve = [ALCOVE, "kms", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(serve, env=environment, stderr=subprocess.PIPE, text=True) as kms:
        assert kms.stderr is not None
        try:
            line = kms.stderr.readline()
            while "http://" not in line:
                line = kms.stderr.readline()
                assert line
            url = "http://" + line.partition("http://")[2].split()[0].rstrip(",;")
            _hand_out(environment | keys | {"AWS_ENDPOINT_URL_STS": url}, role["RoleArn"])
        finally:
            kms.terminate()
            kms.communicate(timeout=60)


def _hand_out(environment: dict[str, str], role: str) -> None:
    command = [ALCOVE, "credentials", "--enclave", "app", "--role-arn", role, "--duration", "900"]
    paths = Paths.from_environment(environment)
    records = [Record(ENCLAVE, "app", 16, (0,), 64, os.getpid(), debug_mode=True)]
    _, lock = registry.reserve(paths, ENCLAVE, lambda _: records[0])
    with lock, subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as provider:
        assert provider.stderr is not None
        try:
            said = provider.stderr.readline()
            assert said.startswith("app: credentials on port 9040, now "), said + provider.stderr.read()
            given = json.loads(ask_as(16, environment["ALCOVE_RUN"]).partition(b"\r\n\r\n")[2])
            assert given["AccessKeyId"] == said.split()[-1]
            assert given["AccessKeyId"] != environment["AWS_ACCESS_KEY_ID"]
            assert given["Token"]
            for cid in (17, 3):
                assert ask_as(cid, environment["ALCOVE_RUN"]).startswith(b"HTTP/1.1 403 ")
        finally:
            provider.terminate()
            provider.communicate(timeout=60)
