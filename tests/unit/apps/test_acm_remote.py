"""Exports from elsewhere: an HTTPS server, and S3's protocol as botocore speaks it."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.apps.acm_device import certificate, ec_key
from tests.unit.apps.acm_kms import chain_pem, pem

from alcove.apps.acm import remote, sources
from alcove.apps.acm.settings import TokenSettings
from alcove.errors import InputError, UsageError

CHAIN = chain_pem(certificate(ec_key(), "a.example"))
EXPORT = {"certificate": CHAIN, "certificateChain": "", "encryptedPrivateKey": "QUFB", "encryptionMethod": "x"}


def token(source: str, **members: object) -> TokenSettings:
    return TokenSettings("web", None, source, members, None, 43200, "tls", None, None)


class Handler(BaseHTTPRequestHandler):
    """Has an export, something too large, something slow, ways elsewhere, and S3's answers."""

    seen: list[tuple[str, str]]

    def do_GET(self) -> None:
        """By the path."""
        self.seen.append((self.path, self.headers.get("authorization", "")))
        path = self.path.partition("?")[0]
        if path in ("/export.json", "/bucket/deep/key.json"):
            self.answer(200, json.dumps(EXPORT).encode())
        elif path == "/moved":
            self.answer(302, b"", location="/export.json")
        elif path == "/away":
            self.answer(302, b"", location=f"http://localhost:{self.server.server_port}/export.json")  # type: ignore[attr-defined]
        elif path in ("/large", "/bucket/large"):
            self.answer(200, b" " * (remote.MAX_OBJECT + 1))
        elif path == "/slow":
            self.drip()
        elif path == "/bucket/denied":
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        else:
            self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        """A byte now and then: no single wait is long."""
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b" ")
                time.sleep(0.02)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """HTTPS on loopback; it is trusted by `tls.pem`."""
    (tmp_path / "tls.pem").write_bytes(certificate(ec_key(), "localhost").public_bytes(Encoding.PEM))
    (tmp_path / "tls.key").write_bytes(pem(ec_key()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem", tmp_path / "tls.key")
    Handler.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.socket = context.wrap_socket(made.socket, server_side=True)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def url(server: ThreadingHTTPServer) -> str:
    return f"https://localhost:{server.server_port}"


@pytest.fixture
def s3(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's SDKs are sent here."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_CA_BUNDLE": str(tmp_path / "tls.pem"),
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("path", ["/export.json", "/export.json?X-Amz-Signature=5ecret", "/moved"])
def test_an_export_is_fetched_by_https(url: str, tmp_path: Path, path: str) -> None:
    """As from a file; a redirection within https is followed."""
    found = sources.fetch(token("File", url=url + path, ca_file=str(tmp_path / "tls.pem")))
    assert found.keys == ({"encrypted_pem_b64": "QUFB", "id": 1, "label": "acm-key", "cert_pem": CHAIN},)
    assert found.certificate == CHAIN


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/large", f"is larger than {1 << 20} bytes"),
        ("/slow", "takes longer than"),
        ("/away", "leads away from https"),
        ("/nothing", "cannot be had: status 404"),
    ],
)
def test_a_url_is_bounded(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, sentence: str) -> None:
    """Too large, too slow though each byte comes soon, without TLS, not there: one sentence, and no query in it."""
    monkeypatch.setattr(remote, "FETCH_SECONDS", 1.0)
    with pytest.raises(InputError) as caught:
        sources.fetch(token("File", url=f"{url}{path}?X-Amz-Signature=5ecret", ca_file=str(tmp_path / "tls.pem")))
    assert sentence in caught.value.message
    assert "5ecret" not in caught.value.message


def test_a_server_must_be_trusted(url: str, tmp_path: Path) -> None:
    """By the system or by the file that the source names, which has to be one."""
    with pytest.raises(InputError, match="certificate verify failed"):
        sources.fetch(token("File", url=f"{url}/export.json"))
    with pytest.raises(UsageError, match="cannot be used"):
        sources.fetch(token("File", url=f"{url}/export.json", ca_file=str(tmp_path / "nothing")))


@pytest.mark.usefixtures("s3")
def test_an_export_is_fetched_from_s3() -> None:
    """By botocore, signed; the key has the name that AWS's agent gives it."""
    found = sources.fetch(token("S3", uri="s3://bucket/deep/key.json"))
    assert found.keys == ({"encrypted_pem_b64": "QUFB", "id": 1, "label": "s3-key", "cert_pem": CHAIN},)
    ((path, authorization),) = Handler.seen
    assert path.partition("?")[0] == "/bucket/deep/key.json"
    assert authorization.startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("large", "s3://bucket/large is larger than"),
        ("denied", "s3://bucket/denied cannot be had: AccessDenied: Access Denied"),
        ("nothing", "s3://bucket/nothing cannot be had: NoSuchKey: no such key"),
    ],
)
def test_an_object_is_bounded(name: str, sentence: str) -> None:
    """Too large, not allowed, not there: one sentence, with S3's words."""
    with pytest.raises(InputError) as caught:
        sources.fetch(token("S3", uri=f"s3://bucket/{name}"))
    assert sentence in caught.value.message


@pytest.mark.parametrize("uri", ["bucket/key", "s3://bucket", "s3://bucket/", "s3:///key", "https://bucket/key"])
def test_an_s3_uri_names_bucket_and_key(uri: str) -> None:
    """Anything else is one sentence."""
    with pytest.raises(UsageError, match="s3://BUCKET/KEY"):
        sources.fetch(token("S3", uri=uri))


def test_a_file_is_bounded(tmp_path: Path) -> None:
    """Too large is told, not cut off."""
    (tmp_path / "large").write_bytes(b" " * (remote.MAX_OBJECT + 1))
    with pytest.raises(InputError, match="is larger than"):
        sources.fetch(token("File", path=str(tmp_path / "large")))
