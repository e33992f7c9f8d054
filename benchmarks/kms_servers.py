"""The servers that are measured, and requests signed for them beforehand, as botocore signs."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from alcove.attestation.attester import Attester
from alcove.attestation.authority import Authority
from alcove.kms.stores import open_store
from alcove.kms.users import NewUser, add_user
from benchmarks.kms_load import pack
from benchmarks.process import FailedError

MOTO = Path(".peers/moto/bin/moto_server")
PCRS = {index: bytes((index + 1,)) * 48 for index in range(5)}
_ENCLAVE = "i-0123456789abcdef0-enc0123456789abcdef"
_PROGRAM = """
import sys
from pathlib import Path
from alcove.attestation.verify import Root
from alcove.kms.server import ServeConfig, serve
d = Path(sys.argv[1])
roots = [Root.from_pem((d / "root.pem").read_bytes())] if (d / "root.pem").exists() else []
config = ServeConfig(f"sqlite:///{d}/kms.sqlite", d / "root.key", Path(sys.argv[2]), roots, port=0)
serve(config, ready=lambda url: print(url, flush=True))
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answers."""

    url: str
    process: int
    access_key_id: str
    secret: str

    @property
    def client(self) -> Any:
        """boto3 for it."""
        return boto3.client(
            "kms",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret,
            config=Config(retries={"max_attempts": 0}, read_timeout=120),
        )

    def signed(self, operation: str, parameters: Mapping[str, Any]) -> bytes:
        """One request, as the wire has it."""
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"TrentService.{operation}"}
        request = AWSRequest("POST", f"{self.url}/", data=json.dumps(parameters).encode(), headers=headers)
        SigV4Auth(Credentials(self.access_key_id, self.secret), "kms", "us-east-1").add_auth(request)
        prepared = request.prepare()
        fields = {"Host": self.url.removeprefix("http://"), "User-Agent": "Boto3/1.43", **dict(prepared.headers)}
        fields["Content-Length"] = str(len(prepared.body))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST / HTTP/1.1\r\n{head}\r\n".encode() + prepared.body

    def load(self, requests: Sequence[bytes], seconds: float, connections: int = 8) -> dict[str, Any]:
        """What the load generator found; FailedError when an answer was not 200."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(pack(requests))
            file.flush()
            where = self.url.removeprefix("http://")
            argv = [sys.executable, "-m", "benchmarks.kms_load", where, file.name, str(connections), str(seconds)]
            found: dict[str, Any] = json.loads(subprocess.check_output(argv))
        if found["failed"]:
            raise FailedError(f"{found['failed']} answers were errors: {found['example']}")
        return found


@contextlib.contextmanager
def alcove(directory: Path, authority: Authority | None = None, audit: Path | None = None) -> Iterator[Target]:
    """Alcove's KMS on a SQLite store, one worker, in a process of its own; the audit log beside it."""
    if authority:
        (directory / "root.pem").write_bytes(authority.root_path.read_bytes())
    with contextlib.closing(open_store(f"sqlite:///{directory}/kms.sqlite", directory / "root.key")) as store:
        user: NewUser = add_user(store, f"admin{len(store.users())}", admin=True)
    argv = [sys.executable, "-c", _PROGRAM, str(directory), str(audit or directory / "audit.jsonl")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            yield Target(url, process.pid, user.access_key_id, user.secret_access_key)
        finally:
            process.terminate()


@contextlib.contextmanager
def moto() -> Iterator[Target | None]:
    """Moto's server, as `moto_server` starts it; None when it is not installed (`scripts/setup --benchmarks`)."""
    if not MOTO.exists():
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [MOTO, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)) as process:
        try:
            until = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                if time.monotonic() > until:
                    raise FailedError("moto did not start")
                time.sleep(0.1)
            yield Target(f"http://127.0.0.1:{port}", process.pid, "AKIDEXAMPLE", "secret")
        finally:
            process.terminate()


def text(data: bytes) -> str:
    """A blob as JSON has it."""
    return base64.b64encode(data).decode()


@dataclass(frozen=True, slots=True)
class Enclave:
    """What signs documents, and the public key in them."""

    authority: Authority
    attester: Attester
    public_key: bytes

    @classmethod
    def make(cls, directory: Path) -> Enclave:
        """With an authority of its own."""
        now = datetime.now(UTC)
        authority = Authority.create(directory / "ca", now)
        parent = authority.parent_identity(_ENCLAVE.partition("-enc")[0], "eu-central-1", now)
        key = rsa.generate_private_key(65537, 2048).public_key()
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(authority, Attester(parent, _ENCLAVE), spki)

    def document(self) -> bytes:
        """A new one."""
        now = datetime.now(UTC)
        return self.attester.document(PCRS, user_data=None, nonce=os.urandom(32), public_key=self.public_key, now=now)
