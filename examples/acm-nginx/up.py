#!/usr/bin/env python3
"""Bring up nginx with a key that exists only in an enclave: KMS, its key, the image, the agent, a local CA, nginx.

    up.py [--dir DIR] [--port PORT] [--once]

Everything is in DIR (a temporary one if none is given), listens on loopback, and ends with Ctrl-C. With --once it
fetches the page one time and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "localhost"
READY_SECONDS = 180.0
END_SECONDS = 20.0
ATTESTED = ("kms:Decrypt", "kms:GenerateDataKey")


class Stack:
    """The running parts, and where they are.

    Args:
        directory: Everything's place; others must be able to pass through it when this is root.
        port: nginx's.
    """

    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.port = directory, port
        self.run = directory / "run"
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "ALCOVE_RUN": str(self.run),
            "AWS_REGION": "us-east-1",
        }
        self._parts: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"https://{NAME}:{self.port}/"

    @property
    def ca(self) -> Path:
        """What a client must trust."""
        return self.directory / "ca" / "ca.pem"

    def pid(self, name: str) -> int:
        """The process of a part: kms or agent."""
        return self._parts[name].pid

    def status(self) -> dict[str, Any]:
        """What `alcove acm status` says."""
        command = ["alcove", "acm", "status", "--json", "--run-directory", self.directory / "acm"]
        done = subprocess.run(command, env=self.environment, capture_output=True, check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"tokens": [], "enclave": None}
        return found

    def up(self) -> None:
        """Start everything, from the KMS to nginx."""
        self.prepare()
        self.agent()
        self.nginx()

    def prepare(self) -> None:
        """KMS, its key, and the image that may use it."""
        self._kms()
        self.key = self._key()
        self._allow(self.key, self._image(self.key))

    def _kms(self) -> None:
        certificate, key = self.directory / "ca.pem", self.directory / "kms.key"
        self.do(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
            "-subj", "/CN=KMS", "-addext", f"subjectAltName=DNS:{NAME}", "-keyout", key, "-out", certificate,
        )  # fmt: skip
        self.kms_port = free_port()
        store = f"sqlite:///{self.directory}/kms.sqlite"
        user = json.loads(self.do("alcove", "kms", "user", "add", "admin", "--admin", "--json", "--store", store))
        self.start(
            "kms", "alcove", "kms", "serve", "--listen", f"127.0.0.1:{self.kms_port}", "--store", store,
            "--tls-cert", certificate, "--tls-key", key,
        )  # fmt: skip
        wait_for(lambda: self._lives("kms") and connects(self.kms_port), "the KMS")
        self.environment |= {
            "AWS_ACCESS_KEY_ID": user["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": user["SecretAccessKey"],
        }
        self.owner = user["UserArn"].rpartition(":user")[0] + ":root"
        session = boto3.Session(user["AccessKeyId"], user["SecretAccessKey"], region_name="us-east-1")
        url = f"https://{NAME}:{self.kms_port}"
        self.kms = session.client("kms", endpoint_url=url, verify=str(certificate), config=Config(proxies={}))

    def _key(self) -> str:
        """A KMS key that nobody may use yet: the image that may has its ARN in it."""
        made = self.kms.create_key(Description="acm-nginx", Policy=self._policy(None))
        return str(made["KeyMetadata"]["Arn"])

    def _allow(self, key: str, pcr0: str) -> None:
        self.kms.put_key_policy(KeyId=key, PolicyName="default", Policy=self._policy(pcr0))

    def _policy(self, pcr0: str | None) -> str:
        owner = {"AWS": self.owner}
        manage = ["kms:DescribeKey", "kms:GetKeyPolicy", "kms:PutKeyPolicy", "kms:ScheduleKeyDeletion"]
        statements: list[dict[str, Any]] = [
            {"Effect": "Allow", "Principal": owner, "Action": manage, "Resource": "*"},
        ]
        if pcr0 is not None:
            condition = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": pcr0}}
            allow = {"Effect": "Allow", "Principal": owner, "Action": list(ATTESTED), "Resource": "*"}
            statements.append(allow | {"Condition": condition})
        return json.dumps({"Version": "2012-10-17", "Statement": statements})

    def _image(self, key: str) -> str:
        """The enclave image; its PCR0."""
        context = self.directory / "image"
        context.mkdir()
        policy = {"kms_keys": [key], "kms_ca": "/app/ca.pem"}
        (context / "acm.json").write_text(json.dumps(policy, indent=2))
        shutil.copy(self.directory / "ca.pem", context)
        shutil.copy(HERE / "Dockerfile", context)
        self.do("alcove", "rootfs", context / "rootfs.tar", "--with", "acm")
        built = self.do(
            "nitro-cli", "build-enclave", "--docker-dir", context, "--docker-uri", "acm-nginx:latest",
            "--output-file", self.directory / "acm.eif",
        )  # fmt: skip
        return str(json.loads(built)["Measurements"]["PCR0"])

    def agent(self, *more_tokens: str) -> None:
        """The agent, with a token whose key is born in the enclave, and more tokens as YAML."""
        group = "  socket_group: www-data\n" if os.getuid() == 0 else ""
        (self.directory / "acm.yaml").write_text(f"""\
enclave: {{cpu_count: 2, memory_mib: 512, image_path: {self.directory}/acm.eif}}
kms: {{region: us-east-1, endpoint: "{NAME}:{self.kms_port}", key_id: "{self.key}"}}
options:
  service: nginx
  pid_file: {self.directory}/nginx.pid
  run_directory: {self.directory}/acm
  state_directory: {self.directory}/keys
  sync_interval_secs: 5
{group}tokens:
- label: web
  source:
    LocalCa: {{directory: {self.directory}/ca, domains: [{NAME}], key_type: ec-p256}}
  target:
    Conf: {{path: {self.directory}/acm/nginx-acm.conf}}
{"".join(more_tokens)}""")
        self.start("agent", "alcove", "acm", "agent", "--config", self.directory / "acm.yaml")
        wait_for(lambda: self._lives("agent") and self.served(), "the agent")

    def served(self) -> bool:
        """Whether the agent serves its token."""
        tokens = self.status()["tokens"]
        return bool(tokens) and all(token["served"] for token in tokens)

    def nginx(self, more_servers: str = "") -> None:
        """Start nginx, which finds its key through p11-kit."""
        (self.directory / "www").mkdir(exist_ok=True)
        (self.directory / "www" / "index.html").write_text("<title>Alcove</title><p>This key is in an enclave.</p>\n")
        for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
            (self.directory / "temporary" / name).mkdir(parents=True, exist_ok=True)
        self.environment |= {
            "P11_KIT_SERVER_ADDRESS": f"unix:path={self.directory}/acm/p11.sock",
            "PKCS11_MODULE_PATH": str(next(Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so"))),
        }
        (self.directory / "nginx.conf").write_text(nginx_conf(self.directory, self.port, more_servers))
        self.do(nginx_program(), "-c", self.directory / "nginx.conf")  # it goes into the background
        wait_for(lambda: connects(self.port), "nginx")

    def do(self, *command: object) -> str:
        """Run a program that must succeed; what it printed."""
        done = subprocess.run(
            list(map(str, command)), env=self.environment, cwd=self.directory, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"up.py: error: `{command[0]}` failed: {done.stderr.strip()[-400:]}")
        return done.stdout

    def start(self, name: str, *command: object) -> None:
        """Start a part; what it says goes to a file."""
        with (self.directory / f"{name}.log").open("ab") as log:
            self._parts[name] = subprocess.Popen(
                list(map(str, command)), env=self.environment, cwd=self.directory, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip

    def _lives(self, name: str) -> bool:
        """Whether a part has not ended; its last words otherwise, for nothing else will come of it."""
        if self._parts[name].poll() is None:
            return True
        said = (self.directory / f"{name}.log").read_text(errors="replace").split("\n")
        sys.exit(f"up.py: error: {name} has ended: {next(filter(None, reversed(said)), 'without a word')}")

    def down(self) -> None:
        """End every part, the last first."""
        self._end_nginx()
        for process in reversed(self._parts.values()):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()
            process.wait()

    def _end_nginx(self) -> None:
        """The master that is there now, and one that was still finishing: nginx hands over at each change."""
        for name in ("nginx.pid", "nginx.pid.oldbin"):
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.directory / name).read_text())
                os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not connects(self.port), "nginx's end", END_SECONDS)


def nginx_conf(directory: Path, port: int, more_servers: str) -> str:
    """A small configuration; the agent's file is included."""
    user = "user www-data;\n" if os.getuid() == 0 else ""
    temporary = "\n".join(
        f"  {name}_temp_path {directory / 'temporary' / short};"
        for name, short in (
            ("client_body", "body"), ("proxy", "proxy"), ("fastcgi", "fastcgi"), ("uwsgi", "uwsgi"), ("scgi", "scgi"),
        )
    )  # fmt: skip
    return f"""\
{user}worker_processes 2;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
lock_file {directory}/nginx.lock;
ssl_engine pkcs11;
env P11_KIT_SERVER_ADDRESS;
env PKCS11_MODULE_PATH;
events {{ worker_connections 512; }}
http {{
  access_log off;
{temporary}
  types {{ text/html html; }}
  server {{
    listen 127.0.0.1:{port} ssl;
    server_name {NAME};
    include {directory}/acm/nginx-acm.conf;
    ssl_protocols TLSv1.2 TLSv1.3;
    root {directory}/www;
  }}
{more_servers}}}
"""


def nginx_program() -> str:
    """Nginx from the system, or the one that `scripts/setup --tests` unpacked."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ROOT / ".peers/usr/sbin/nginx"
    if not Path(found).exists():
        sys.exit("up.py: error: nginx is missing\nhint: apt-get install nginx, or scripts/setup --tests")
    return str(found)


def free_port() -> int:
    """A port of loopback that nobody uses now, below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(20000, 32000)  # noqa: S311 - no secret
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def connects(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Any, what: str, seconds: float = READY_SECONDS) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not ready within {seconds:.0f} s")
        time.sleep(0.1)


@contextlib.contextmanager
def stack(directory: Path, port: int) -> Iterator[Stack]:
    """Everything, up as long as the context lasts."""
    made = Stack(directory, port)
    try:
        made.up()
        yield made
    finally:
        made.down()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, bring it up, wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--once", action="store_true")
    chosen = parser.parse_args(arguments)
    if connects(chosen.port):
        parser.error(f"something listens on port {chosen.port} already: give another --port")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: everything ends with this
    with contextlib.ExitStack() as last:
        directory = chosen.dir or Path(last.enter_context(tempfile.TemporaryDirectory(prefix="acm-nginx-")))
        directory = directory.resolve()
        directory.mkdir(exist_ok=True)
        directory.chmod(0o711)
        try:
            running = last.enter_context(stack(directory, chosen.port))
            print(f"{running.url} is served with a key that exists only in enclave {running.status()['enclave']['id']}")
            print(
                f"try: curl --cacert {running.ca} {running.url}\nsee: alcove acm status --run-directory {directory}/acm"
            )
            if chosen.once:
                print(running.do("curl", "--silent", "--show-error", "--cacert", running.ca, running.url))
                return 0
            signal.pause()
        except (KeyboardInterrupt, TimeoutError) as error:
            print(f"up.py: error: {error}" if str(error) else "", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
