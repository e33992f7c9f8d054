"""The server as its operator sees it: its log, settings, port, signals and TLS."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from tests.unit.kms.server_harness import client, config, running

from alcove.errors import AlcoveError, MachineError, UsageError
from alcove.kms.audit import AuditLog, inspect_log
from alcove.kms.server import serve


def test_without_its_log_the_service_answers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the record cannot be written, the call fails (kms.md §24)."""

    def full(_log: AuditLog, _record: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(AuditLog, "append", full)
    with running(config(tmp_path)) as service, pytest.raises(ClientError) as caught:
        service.admin.generate_random(NumberOfBytes=1)
    assert caught.value.response["Error"]["Code"] == "KMSInternalException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Across restarts the chain holds; a torn last line is cut off; a second writer is refused."""
    path = tmp_path / "audit.jsonl"
    with contextlib.closing(AuditLog(path)) as log:
        log.append({"n": 1})
        with pytest.raises(UsageError, match="in use"):
            AuditLog(path)
    with path.open("ab") as file:
        file.write(b'{"n": 2, "torn')
    with contextlib.closing(AuditLog(path)) as log:
        log.append({"n": 3})
    assert inspect_log(path.read_bytes().splitlines(keepends=True)).records == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": 0}, "1 to 64 workers"),
        ({"tls_cert": Path("x")}, "certificate and a key"),
        ({"host": "192.0.2.1"}, "listen"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """Wrong settings end the start with one sentence."""
    with pytest.raises(AlcoveError, match=words) as caught:
        serve(config(tmp_path, **change))
    assert "\n" not in caught.value.message


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    """The address is named in the sentence."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(MachineError, match="already in use"):
        serve(config(tmp_path, port=taken.getsockname()[1]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """The process ends with status 0 and says nothing."""
    program = (
        "import sys; from pathlib import Path; from alcove.kms.server import ServeConfig, serve\n"
        f"d = Path({str(tmp_path)!r})\n"
        "config = ServeConfig(f'sqlite:///{d}/kms.sqlite', d / 'root.key', d / 'audit.jsonl', (), port=0)\n"
        "serve(config, ready=lambda url: print(url, flush=True))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"http://127.0.0.1:")
        process.send_signal(number)
        assert process.wait(timeout=120) == 0
        assert process.stderr.read() == b""


def test_it_speaks_tls(tmp_path: Path) -> None:
    """With a certificate the service is HTTPS; it offers http/1.1 alone and nothing below TLS 1.2."""
    certificate, key = self_signed(tmp_path)
    with running(config(tmp_path, tls_cert=certificate, tls_key=key)) as service:
        assert service.url.startswith("https://")
        assert client(service.url, service.admin_user, verify=str(certificate)).list_keys()["Keys"] == []
        assert service.records()[-1]["eventName"] == "ListKeys"
        context = ssl.create_default_context(cafile=str(certificate))
        context.set_alpn_protocols(["h2", "http/1.1"])
        address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
        with socket.create_connection(address) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            assert tls.selected_alpn_protocol() == "http/1.1"
    with pytest.raises(UsageError, match="cannot use"):
        serve(config(tmp_path, tls_cert=key, tls_key=certificate))


def self_signed(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kms")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    (directory / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(pem)
    return directory / "cert.pem", directory / "key.pem"
