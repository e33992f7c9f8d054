"""`alcove credentials`: roles of our KMS, an instance, a web identity for an enclave; what cannot be is one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from alcove.devices.vsock.handshake import peer_name
from alcove.enclave import registry
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.types import Cid, Port

ALCOVE = Path(sys.executable).parent / "alcove"
ROLE = "arn:aws:iam::111122223333:role/web"
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


class Aws(BaseHTTPRequestHandler):
    """The instance's metadata, version 2 alone, and an STS that knows one web identity."""

    token = "a-token-of-the-session"
    identity = "a-web-identity"

    def do_PUT(self) -> None:
        """A session of the metadata service; its requests must carry the token."""
        wanted = self.path == "/latest/api/token" and self.headers["x-aws-ec2-metadata-token-ttl-seconds"]
        self._say(200 if wanted else 400, self.token)

    def do_GET(self) -> None:
        """The role of the instance, and its credentials."""
        place = "/latest/meta-data/iam/security-credentials/"
        credentials = {
            "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2020-01-01T00:00:00Z",
            "AccessKeyId": "ASIAINSTANCE", "SecretAccessKey": "of the instance", "Token": "its token",
            "Expiration": "2099-01-01T00:00:00Z",
        }  # fmt: skip
        if self.headers["x-aws-ec2-metadata-token"] != self.token:
            self._say(401, "")
        elif self.path == place:
            self._say(200, "the-role")
        else:
            self._say(200 if self.path == f"{place}the-role" else 404, json.dumps(credentials))

    def do_POST(self) -> None:
        """AssumeRoleWithWebIdentity, unsigned as it is."""
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        given = (asked["Action"], asked["WebIdentityToken"], asked["RoleArn"], self.headers["Authorization"])
        if given != (["AssumeRoleWithWebIdentity"], [self.identity], [ROLE], None):
            self._say(400, "<ErrorResponse><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>")
            return
        self._say(
            200,
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
            "<AccessKeyId>ASIAIDENTITY</AccessKeyId><SecretAccessKey>of the identity</SecretAccessKey>"
            "<SessionToken>its token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
            "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        )

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def aws() -> Iterator[str]:
    """Where it is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Aws) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def chosen(environment: dict[str, str]) -> Iterator[None]:
    """An enclave `app` with CID 16 is registered; its guest is left out."""
    record = Record(ENCLAVE, "app", 16, (0,), 64, os.getpid(), debug_mode=True)
    _, lock = registry.reserve(Paths.from_environment(environment), ENCLAVE, lambda _: record)
    with lock:
        yield


@contextmanager
def provider(environment: dict[str, str], *flags: str) -> Iterator[str]:
    """The running provider; what it said."""
    command = [ALCOVE, "credentials", "--enclave", "app", *flags]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        limit = threading.Timer(120, process.kill)
        limit.start()
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            assert said.startswith("app: credentials on port 9040, now "), said + process.stderr.read()
            yield said
        finally:
            limit.cancel()
            process.terminate()
            process.communicate(timeout=60)


def given_to(cid: int, environment: dict[str, str]) -> dict[str, str]:
    """The credentials that an enclave gets."""
    found: dict[str, str] = json.loads(ask_as(cid, environment["ALCOVE_RUN"]).partition(b"\r\n\r\n")[2])
    return found


@pytest.mark.usefixtures("chosen")
def test_the_role_of_an_instance_is_handed_on(environment: dict[str, str]) -> None:
    """From the metadata service, by a session of its second version, as on EC2."""
    with aws() as url:
        more = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": url}
        with provider(environment | more) as said:
            assert said.split()[-1] == "ASIAINSTANCE"
            assert given_to(16, environment) == {
                "AccessKeyId": "ASIAINSTANCE", "SecretAccessKey": "of the instance", "Token": "its token",
                "Expiration": "2099-01-01T00:00:00Z",
            }  # fmt: skip
            assert ask_as(17, environment["ALCOVE_RUN"]).startswith(b"HTTP/1.1 403 ")


@pytest.mark.usefixtures("chosen")
def test_a_web_identity_is_handed_on_as_a_role(environment: dict[str, str], tmp_path: Path) -> None:
    """As in a pod of Kubernetes: a token in a file, a role, and STS; a token that STS does not know is one line."""
    token = tmp_path / "token"
    with aws() as url:
        more = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": ROLE, "AWS_ENDPOINT_URL_STS": url}
        token.write_text(Aws.identity)
        with provider(environment | more):
            given = given_to(16, environment)
            assert (given["AccessKeyId"], given["Token"]) == ("ASIAIDENTITY", "its token")
        token.write_text("another")
        done = alcove(environment | more, "credentials", "--enclave", "app")
    assert done.returncode == 1
    assert done.stderr.startswith("alcove: error: there are no credentials: ")
    assert "another" not in done.stderr


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
    sts = {"AWS_ENDPOINT_URL_STS": "sts"}
    key = {"AWS_ACCESS_KEY_ID": "AKIA0", "AWS_SECRET_ACCESS_KEY": "s"}
    for flags, extra, words in (
        ((), {}, "there are no credentials"),
        ((), key, "the access key AKIA0 does not end"),
        (("--pcr0", "00"), {}, "PCR0 is 96 hex digits"),
        (("--duration", "1"), {}, "--duration is from 900"),
        (("--profile", "none"), {}, "there are no credentials: The config profile (none) could not be found"),
        (("--role-arn", "x"), key, "there are no credentials: Parameter validation failed: Invalid length"),
        (
            ("--role-arn", ROLE),
            key | sts,
            "there are no credentials: Invalid endpoint: sts",
        ),
    ):
        done = alcove(environment | extra, "credentials", "--enclave", "app", *flags)
        assert done.returncode == 1
        assert done.stderr.startswith(f"alcove: error: {words}"), done.stderr
        assert len(done.stderr.splitlines()) <= 2
        assert " s\n" not in done.stderr


@pytest.mark.usefixtures("chosen")
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
    with provider(environment, "--role-arn", role, "--duration", "900") as said:
        given = given_to(16, environment)
        assert given["AccessKeyId"] == said.split()[-1]
        assert given["AccessKeyId"] != environment["AWS_ACCESS_KEY_ID"]
        assert given["Token"]
        for cid in (17, 3):
            assert ask_as(cid, environment["ALCOVE_RUN"]).startswith(b"HTTP/1.1 403 ")
