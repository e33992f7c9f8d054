"""nginx serves TLS with keys that are in an enclave: the example, a renewal under load, the enclave's death, memory."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".peers" / "usr" / "sbin" / "nginx"
PAGE = "This key is in an enclave."
PATIENCE = 180.0  # a loaded machine under emulation; what is promised is measured by the benchmarks

pytestmark = pytest.mark.skipif(
    not (PEERS.exists() or shutil.which("nginx")) or not list(Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so")),
    reason="`scripts/setup --tests` has not been run",
)


def example() -> Any:
    spec = importlib.util.spec_from_file_location("acm_nginx_up", ROOT / "examples" / "acm-nginx" / "up.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Served:
    """The running example, with a second token whose key we know: exported, encrypted by KMS, as AWS does it."""

    def __init__(self, stack: Any, known: ec.EllipticCurvePrivateKey, known_port: int) -> None:
        self.stack, self.known, self.known_port = stack, known, known_port

    def context(self) -> ssl.SSLContext:
        """What trusts both certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.stack.ca)
        context.load_verify_locations(self.stack.directory / "known.pem")
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    def get(self, port: int | None = None, seconds: float = 20.0) -> tuple[str, bytes]:
        """The page over a new connection with a full handshake, and the server's certificate."""
        with (
            socket.create_connection(("127.0.0.1", port or self.stack.port), seconds) as plain,
            self.context().wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            text = b""
            while chunk := secure.recv(4096):
                text += chunk
            return text.decode(), secure.getpeercert(binary_form=True) or b""

    def serial(self) -> int:
        """The serial number of the certificate that is served."""
        return x509.load_der_x509_certificate(self.get()[1]).serial_number


def known_token(directory: Path, kms: Any, kms_key: str, key: ec.EllipticCurvePrivateKey) -> str:
    """AWS's export of a key in a file, and the token's YAML."""
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(77).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    encrypted = base64.b64encode(kms.encrypt(KeyId=kms_key, Plaintext=pem)["CiphertextBlob"]).decode()
    export = {"certificate": certificate, "certificateChain": "", "encryptedPrivateKey": encrypted}
    (directory / "known.pem").write_text(certificate)
    (directory / "export.json").write_text(json.dumps(export | {"encryptionMethod": "KMS"}))
    return f"""\
- label: known
  source:
    File: {{path: {directory}/export.json}}
  target:
    Conf: {{path: {directory}/acm/known.conf}}
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A place that nginx's workers, who are another user, pass to; each pytest that starts closes pytest's own."""
    with tempfile.TemporaryDirectory(prefix="alcove-acm-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Served]:
    module = example()
    stack = module.Stack(directory, module.free_port())
    known, port = ec.generate_private_key(ec.SECP256R1()), module.free_port()
    try:
        stack.prepare()
        policy = json.loads(stack.kms.get_key_policy(KeyId=stack.key, PolicyName="default")["Policy"])
        policy["Statement"][0]["Action"].append("kms:Encrypt")
        stack.kms.put_key_policy(KeyId=stack.key, PolicyName="default", Policy=json.dumps(policy))
        stack.agent(known_token(directory, stack.kms, stack.key, known))
        stack.nginx(
            f"  server {{ listen 127.0.0.1:{port} ssl; include {directory}/acm/known.conf; root {directory}/www; }}\n"
        )
        yield Served(stack, known, port)
    finally:
        stack.down()


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl_opens_a_page_whose_key_is_in_the_enclave(served: Served, version: str) -> None:
    """TLS 1.2 and 1.3: the certificate is the local CA's, and the enclave counts a use of the key."""
    before = served.stack.status()["tokens"][0]["uses"]
    page = served.stack.do(
        "curl", "--silent", "--show-error", "--max-time", 60, "--tls-max", version, "--cacert", served.stack.ca,
        served.stack.url,
    )  # fmt: skip
    assert PAGE in page
    assert served.stack.status()["tokens"][0]["uses"] > before


def test_an_exported_key_is_served_too(served: Served) -> None:
    """AWS's export format from a file, decrypted by the enclave with attestation."""
    text, certificate = served.get(served.known_port)
    assert PAGE in text
    assert x509.load_der_x509_certificate(certificate).serial_number == 77


def test_chromium_opens_the_page(served: Served, tmp_path: Path) -> None:
    """Headless, with the local CA's key trusted for this run alone."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium")
    leaf = x509.load_der_x509_certificate(served.get()[1])
    from cryptography.hazmat.primitives.serialization import PublicFormat  # noqa: PLC0415

    info = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(info)
    pin = base64.b64encode(digest.finalize()).decode()
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path}", f"--ignore-certificate-errors-spki-list={pin}", "--dump-dom", served.stack.url],
        capture_output=True, text=True, timeout=PATIENCE, check=False, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert PAGE in done.stdout, done.stderr[-2000:]


def test_a_renewal_under_load_drops_no_connection(served: Served) -> None:
    """While clients connect without a pause the key is replaced: every handshake and every page is whole."""
    before = served.serial()
    stop, failures, pages = threading.Event(), list[str](), list[int]()

    def load() -> None:
        while not stop.is_set():
            try:
                text, certificate = served.get(seconds=60)
                assert PAGE in text
                pages.append(x509.load_der_x509_certificate(certificate).serial_number)
            except (OSError, AssertionError) as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        (served.stack.directory / "keys" / f"{b'web'.hex()}.json").unlink()  # the next round makes another key
        eventually(lambda: bool(pages) and pages[-1] != before, "the certificate was not renewed")
        renewed = len(pages)
        eventually(lambda: len(pages) > renewed + 10, "the new key does not serve")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert {before} < set(pages)


def processes_of(served: Served) -> dict[int, str]:
    """The agent, nginx's master and workers, and whatever else runs below them but the enclave."""
    nginx = int((served.stack.directory / "nginx.pid").read_text())
    found, queue = {}, [nginx, served.stack.pid("agent")]
    while queue:
        pid = queue.pop()
        name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        found[pid] = name
        queue += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return {pid: name for pid, name in found.items() if "alcove.enclave.supervise" not in name}


def memory_holds(pid: int, needles: list[bytes]) -> bool:
    """Whether a process has one of these in memory that it can read."""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if not permissions.startswith("r") or "[v" in line:
                continue
            try:
                memory.seek(start)
                held = memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue
            if any(needle in held for needle in needles):
                return True
    return False


@pytest.mark.skipif(os.getuid() != 0, reason="only root reads other processes' memory")
def test_no_private_key_byte_is_on_the_parent(served: Served) -> None:
    """Neither nginx, the agent, p11-kit inside them, nor any file of theirs has the key whose use they have."""
    assert PAGE in served.get(served.known_port)[0]
    number = served.known.private_numbers().private_value
    der = served.known.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    body = base64.b64encode(der)
    needles = [
        number.to_bytes(32, "big"),
        number.to_bytes(32, "little"),
        body[40:72],
        number.to_bytes(32).hex().encode(),
    ]
    control = b"".join(needles)
    assert memory_holds(os.getpid(), [control]), "the search does not find what is there"
    found = processes_of(served)
    assert sum("nginx" in name for name in found.values()) >= 3
    assert any("acm" in name for name in found.values())
    assert not [name for pid, name in found.items() if memory_holds(pid, needles)]
    files = [path for path in served.stack.directory.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if any(needle in path.read_bytes() for needle in needles)]


def test_the_enclaves_death_ends_handshakes_and_the_agent_brings_them_back(served: Served) -> None:
    """No page after the enclave was killed; then the agent starts another, restores the keys, and nginx goes on."""
    before, key = served.stack.status(), served.serial()
    os.kill(supervisor_of(served), signal.SIGKILL)
    began = time.monotonic()
    failed = False
    while not failed:
        try:
            served.get(seconds=5)
        except OSError:
            failed = True
        assert time.monotonic() - began < 10, "handshakes still go well without an enclave"

    def back() -> bool:
        try:
            return PAGE in served.get(seconds=5)[0] and PAGE in served.get(served.known_port, seconds=5)[0]
        except OSError:
            return False

    eventually(back, "the agent did not bring the service back")
    status = served.stack.status()
    assert status["enclave"]["id"] != before["enclave"]["id"]
    assert status["starts"] == before["starts"] + 1
    settled(served)
    assert served.serial() == key  # restored from its ciphertext, not made anew


def settled(served: Served) -> None:
    """Until then old workers, whose enclave is dead, take connections too."""
    old = served.stack.directory / "nginx.pid.oldbin"
    eventually(lambda: not old.exists(), "the old nginx does not end")


def supervisor_of(served: Served) -> int:
    """The process whose end is the enclave's end."""
    done = subprocess.run(
        ["nitro-cli", "describe-enclaves"], env=served.stack.environment, capture_output=True, check=True
    )
    (pid,) = [entry["ProcessID"] for entry in json.loads(done.stdout)]
    return int(pid)


def test_status_says_what_is_served(served: Served) -> None:
    """Two tokens with their sources, the certificate's end, and uses; status 0, and no PIN in it."""
    eventually(served.stack.served, "not served")
    done = subprocess.run(
        ["alcove", "acm", "status", "--run-directory", str(served.stack.directory / "acm")],
        env=served.stack.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "runs, enclave i-" in lines[0]
    assert "served" in lines[1]
    assert "from LocalCa, certificate until" in lines[1]
    assert "from File" in lines[2]
    stanza = (served.stack.directory / "acm" / "nginx-acm.conf").read_text()
    (pin,) = [line.split("pin-value=")[1][:32] for line in stanza.splitlines() if "pin-value" in line]
    assert pin not in (served.stack.directory / "acm" / "status.json").read_text()
    assert pin not in (served.stack.directory / "agent.log").read_text()
