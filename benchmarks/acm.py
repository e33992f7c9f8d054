"""Full TLS 1.3 handshakes a second of nginx, by where its key is.

Without --enclave: in a file, behind `p11-kit server` with SoftHSM, and behind our PKCS#11 server as a program of this
machine; promised is at least 80 % of what SoftHSM's gives. With --enclave: in a file and in an enclave of the example
acm-nginx, which is brought up for it (KMS, image, agent).

The clients are `openssl s_time`, one a connection, without session reuse; nginx has two workers. Everything shares the
machine's processors.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.mechanisms import Profile
from alcove.apps.acm.objects import key_objects
from alcove.apps.acm.server import P11Server, listen
from alcove.apps.acm.token import Rate, Slots, Token
from benchmarks.harness import Report, at_least, main, note

ROOT = Path(__file__).parent.parent
PIN = "123456"
SOFTHSM = next((path for path in map(Path, ("/usr/lib/softhsm/libsofthsm2.so",)) if path.exists()), None)
CONNECTIONS = (1, 16)
KEYS = ("P-256", "RSA-2048")
_READY = 60.0
_COUNTED = re.compile(rb"^(\d+) connections in", re.MULTILINE)


@dataclass(frozen=True)
class Pair:
    """A key with its certificate, in files too."""

    name: str
    key: KeyPair
    directory: Path

    @property
    def key_file(self) -> Path:
        """PKCS#8."""
        return self.directory / f"{self.name}.key"

    @property
    def certificate_file(self) -> Path:
        """Signed by itself."""
        return self.directory / f"{self.name}.pem"


def make_pair(name: str, directory: Path) -> Pair:
    """A fresh key and a certificate for localhost."""
    private = ec.generate_private_key(ec.SECP256R1()) if name == "P-256" else rsa.generate_private_key(65537, 2048)
    pair = Pair(name, KeyPair(private), directory)
    now, subject = datetime.now(UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(1))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = builder.add_extension(names, critical=False).sign(private, hashes.SHA256())
    pair.certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    pair.key_file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pair


def example() -> Any:
    """The example's program, for its helpers."""
    spec = importlib.util.spec_from_file_location("acm_nginx_up", ROOT / "examples" / "acm-nginx" / "up.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def program(*command: object, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background."""
    process = subprocess.Popen(
        list(map(str, command)), env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def wait(condition: Callable[[], bool], what: str) -> None:
    """Until something is true."""
    deadline = time.monotonic() + _READY
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{what} does not start")
        time.sleep(0.05)


@contextlib.contextmanager
def our_server(directory: Path, pairs: Sequence[Pair]) -> Iterator[Path]:
    """Our PKCS#11 server in a process of its own."""
    path = directory / "ours.sock"
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(_serve(path, pairs))
        finally:
            os._exit(0)
    try:
        wait(path.exists, "our server")
        yield path
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def _serve(path: Path, pairs: Sequence[Pair]) -> None:
    slots = Slots(time.monotonic)
    objects = [
        each
        for number, pair in enumerate(pairs, 1)
        for each in key_objects(pair.key, bytes([number]), pair.name, Profile.TLS)
    ]
    slots.add(Token("bench", PIN.encode(), tuple(objects), Profile.TLS, float("inf"), Rate(None, time.monotonic)))
    server = await P11Server(slots, note).start(listen(f"unix:path={path}"))
    await server.serve_forever()


@contextlib.contextmanager
def softhsm_server(directory: Path, pairs: Sequence[Pair]) -> Iterator[Path]:
    """`p11-kit server` with SoftHSM, which has the same keys."""
    (directory / "tokens").mkdir()
    (directory / "softhsm.conf").write_text(f"directories.tokendir = {directory}/tokens\nlog.level = ERROR\n")
    environment = {"SOFTHSM2_CONF": str(directory / "softhsm.conf")}
    util = ["softhsm2-util", "--pin", PIN]
    commands = [[*util, "--init-token", "--free", "--label", "bench", "--so-pin", "12345678"]]
    for number, pair in enumerate(pairs, 1):
        names = ["--token", "bench", "--label", pair.name, "--id", f"0{number}"]
        commands.append([*util, "--import", str(pair.key_file), *names])
    for command in commands:
        subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
    path = directory / "softhsm.sock"
    serve = ("p11-kit", "server", "-f", "-n", path, "--provider", SOFTHSM, "pkcs11:")
    with program(*serve, environment=environment):
        wait(path.exists, "p11-kit server")
        yield path


@contextlib.contextmanager
def nginx(
    directory: Path, keys: Mapping[str, str], pairs: Sequence[Pair], socket: Path | None
) -> Iterator[dict[str, int]]:
    """Nginx with a server for each key; their ports."""
    up = example()
    place = Path(tempfile.mkdtemp(prefix="nginx-", dir=directory))
    ports = {pair.name: up.free_port() for pair in pairs}
    common = "ssl_protocols TLSv1.3; ssl_session_cache off; ssl_session_tickets off;"
    blocks = "\n".join(
        f"  server {{ listen 127.0.0.1:{ports[pair.name]} ssl; ssl_certificate {pair.certificate_file};"
        f' ssl_certificate_key "{keys[pair.name]}"; {common} }}'
        for pair in pairs
    )
    temporary = "".join(
        f" {name}_temp_path {place}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    engine = "ssl_engine pkcs11;\nenv P11_KIT_SERVER_ADDRESS;\nenv PKCS11_MODULE_PATH;\n" if socket else ""
    (place / "nginx.conf").write_text(
        f"user {'root' if os.getuid() == 0 else 'nobody'};\nworker_processes 2;\npid {place}/pid;\n"
        f"error_log {place}/error.log;\nlock_file {place}/lock;\n{engine}events {{ worker_connections 512; }}\n"
        f"http {{\n  access_log off;{temporary}\n{blocks}\n}}\n"
    )
    environment = {
        "P11_KIT_SERVER_ADDRESS": f"unix:path={socket}",
        "PKCS11_MODULE_PATH": str(next(Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so"))),
    }
    arguments = ("-c", place / "nginx.conf", "-g", "daemon off;")
    with program(up.nginx_program(), *arguments, environment=environment if socket else None):
        wait(lambda: all(up.connects(port) for port in ports.values()), f"nginx ({place}/error.log)")
        yield ports


def handshakes(port: int, connections: int, seconds: int) -> float:
    """Full handshakes a second."""
    command = ["openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-tls1_3", "-time", str(seconds)]
    began = time.perf_counter()
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(connections)]
    outputs = [client.communicate()[0] for client in clients]
    took = time.perf_counter() - began
    counts = [int(found[1]) for output in outputs if (found := _COUNTED.search(output))]
    if len(counts) != connections:
        sys.exit("a client could not connect")
    return sum(counts) / took


def uri(number: int) -> str:
    """A key on the benchmark's token, as nginx has it."""
    return f"engine:pkcs11:pkcs11:token=bench;id=%0{number};type=private?pin-value={PIN}"


def compare(ports: Mapping[str, Mapping[str, int]], rounds: int, seconds: int) -> dict[tuple[str, str, int], float]:
    """The best rate of each server, key and number of connections; they take turns."""
    best: dict[tuple[str, str, int], float] = {}
    for number in range(rounds):
        for key in KEYS:
            for connections in CONNECTIONS:
                for name in ports if number % 2 == 0 else reversed(list(ports)):
                    note(f"round {number + 1} of {rounds}: {key}, {connections} connections, {name}")
                    rate = handshakes(ports[name][key], connections, seconds)
                    best[name, key, connections] = max(rate, best.get((name, key, connections), 0.0))
    return best


def rows(best: Mapping[tuple[str, str, int], float], names: Sequence[str], base: str) -> list[dict[str, object]]:
    """A table with the ratio to one of them."""
    return [
        {"key": key, "connections": connections}
        | {name: round(best[name, key, connections]) for name in names}
        | {f"{name} / {base}": round(best[name, key, connections] / best[base, key, connections], 3)
           for name in names if name != base}
        for key in KEYS
        for connections in CONNECTIONS
    ]  # fmt: skip


def outside(arguments: argparse.Namespace) -> Report:
    """Without a machine between."""
    if SOFTHSM is None or shutil.which("p11-kit") is None:
        sys.exit("SoftHSM or p11-kit is missing: scripts/setup --tests")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alcove-bench-")))
        pairs = [make_pair(name, directory) for name in KEYS]
        in_file = {pair.name: str(pair.key_file) for pair in pairs}
        on_token = {pair.name: uri(number) for number, pair in enumerate(pairs, 1)}
        theirs = stack.enter_context(softhsm_server(directory, pairs))
        ours = stack.enter_context(our_server(directory, pairs))
        ports = {
            "file": stack.enter_context(nginx(directory, in_file, pairs, None)),
            "SoftHSM": stack.enter_context(nginx(directory, on_token, pairs, theirs)),
            "ours": stack.enter_context(nginx(directory, on_token, pairs, ours)),
        }
        best = compare(ports, arguments.rounds, arguments.seconds)
    promises = [
        at_least(f"ours against SoftHSM, {key}, {connections} connections",
                 best["ours", key, connections] / best["SoftHSM", key, connections], 0.8)
        for key in KEYS for connections in CONNECTIONS
    ]  # fmt: skip
    tables = {"full TLS 1.3 handshakes a second": rows(best, ("file", "SoftHSM", "ours"), "SoftHSM")}
    return Report([], promises, tables)


def inside(arguments: argparse.Namespace) -> Report:
    """With the keys in an enclave: AWS's exports, decrypted by KMS for the image."""
    up = example()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alcove-bench-")))
        directory.chmod(0o711)
        running = up.Stack(directory, up.free_port())
        stack.callback(running.down)
        running.prepare()
        pairs = [make_pair(name, directory) for name in KEYS]
        running.agent(*[_exported(running, pair) for pair in pairs])
        keys = {pair.name: _key_of(directory / "acm" / f"{pair.name}.conf") for pair in pairs}
        in_file = {pair.name: str(pair.key_file) for pair in pairs}
        ports = {
            "file": stack.enter_context(nginx(directory, in_file, pairs, None)),
            "enclave": stack.enter_context(nginx(directory, keys, pairs, directory / "acm" / "p11.sock")),
        }
        best = compare(ports, arguments.rounds, arguments.seconds)
    return Report([], [], {"full TLS 1.3 handshakes a second": rows(best, ("file", "enclave"), "file")})


def _exported(running: Any, pair: Pair) -> str:
    policy = json.loads(running.kms.get_key_policy(KeyId=running.key, PolicyName="default")["Policy"])
    if "kms:Encrypt" not in policy["Statement"][0]["Action"]:
        policy["Statement"][0]["Action"].append("kms:Encrypt")
        running.kms.put_key_policy(KeyId=running.key, PolicyName="default", Policy=json.dumps(policy))
    blob = running.kms.encrypt(KeyId=running.key, Plaintext=pair.key_file.read_bytes())["CiphertextBlob"]
    export = {"certificate": pair.certificate_file.read_text(), "encryptedPrivateKey": base64.b64encode(blob).decode()}
    file = pair.directory / f"{pair.name}.json"
    file.write_text(json.dumps(export))
    target = f"{pair.directory}/acm/{pair.name}.conf"
    return f"- {{label: {pair.name}, source: {{File: {{path: {file}}}}}, target: {{Conf: {{path: {target}}}}}}}\n"


def _key_of(stanza: Path) -> str:
    return stanza.read_text().split('"')[1]


def benchmark(arguments: argparse.Namespace) -> Report:
    """Inside or outside."""
    return inside(arguments) if arguments.enclave else outside(arguments)


def options(parser: argparse.ArgumentParser) -> None:
    """Where the key is, and for how long."""
    parser.add_argument("--enclave", action="store_true", help="compare a file with an enclave")
    parser.add_argument("--seconds", type=int, default=3, metavar="N", help="each measurement; 3 when not given")


if __name__ == "__main__":
    sys.exit(main("acm", __doc__ or "", benchmark, options))
