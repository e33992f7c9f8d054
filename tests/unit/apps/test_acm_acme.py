"""Certificates from a real ACME server, Let's Encrypt's Pebble, for requests like the enclave's."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from josepy.jwk import JWKRSA
from tests.ports import free_port
from tests.unit.apps.acm_device import certificate, ec_key, rsa_key

from alcove.apps.acm.acme_client import issuer
from alcove.apps.acm.acme_proofs import ACME_IDENTIFIER, ACME_TLS, TlsAlpn01, proving
from alcove.apps.acm.certificates import check_chain, read_chain
from alcove.apps.acm.provisioning import signing_request
from alcove.apps.acm.settings import TokenSettings
from alcove.errors import AlcoveError, MachineError

PEBBLE = Path(__file__).parents[3] / ".peers" / "usr" / "bin" / "pebble"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEBBLE.exists(), reason="`scripts/setup --tests` has not been run"),
]


class Pebble:
    """The server, which proves names at `http_port` and `tls_port` of this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.http_port, self.tls_port = free_port(), free_port()
        tls = certificate(ec_key(), "localhost")
        (directory / "tls.pem").write_bytes(tls.public_bytes(Encoding.PEM))
        key = ec_key().private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        (directory / "tls.key").write_bytes(key)
        settings = {
            "listenAddress": f"127.0.0.1:{self.port}",
            "managementListenAddress": f"127.0.0.1:{free_port()}",
            "certificate": str(directory / "tls.pem"),
            "privateKey": str(directory / "tls.key"),
            "httpPort": self.http_port,
            "tlsPort": self.tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
        }
        (directory / "pebble.json").write_text(json.dumps({"pebble": settings}))

    def token(self, **members: Any) -> TokenSettings:
        """A source that asks this server."""
        common = {
            "directory_url": f"https://localhost:{self.port}/dir",
            "account_key": str(self.directory / "account.pem"),
            "ca_file": str(self.directory / "tls.pem"),
            "http_port": self.http_port,
        }
        return TokenSettings("web", None, "Acme", common | members, None, 43200, "tls", None, ("localhost",))


@pytest.fixture(scope="module")
def pebble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    made = Pebble(tmp_path_factory.mktemp("pebble"))
    environment = {"PATH": os.environ["PATH"], "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"} | {
        "PEBBLE_AUTHZREUSE": "0"  # each test proves its names
    }
    with (made.directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [PEBBLE, "-config", made.directory / "pebble.json"], env=environment, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 30
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", made.port)) == 0:
                        break
                assert process.poll() is None, (made.directory / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield made
        finally:
            process.terminate()
            process.wait()


def request_for(*names: str) -> str:
    return signing_request(ec_key().private, names).public_bytes(Encoding.PEM).decode()


def test_a_chain_is_issued_for_the_enclaves_request(pebble: Pebble) -> None:
    """HTTP-01 on a port of ours: a chain in order, for the request's key and name; and again with the same account."""
    for _ in range(2):
        chain = read_chain(issuer(pebble.token())(request_for("localhost")))
        assert len(chain) >= 2
        check_chain(chain, ec_key(), datetime.now(UTC) + timedelta(seconds=5), ["localhost"])
    assert (pebble.directory / "account.pem").stat().st_mode & 0o777 == 0o600


def test_names_are_proved_in_a_directory_too(pebble: Pebble, tmp_path: Path) -> None:
    """Where the web server serves it; afterwards the proof is gone."""
    import functools  # noqa: PLC0415
    import threading  # noqa: PLC0415
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer  # noqa: PLC0415

    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", pebble.http_port), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            chain = issuer(pebble.token(http_port=None, webroot=str(tmp_path)))(request_for("localhost"))
        finally:
            server.shutdown()
            thread.join()
    assert x509.load_pem_x509_certificate(chain.encode()).public_key() == ec_key().public
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_names_are_proved_in_a_handshake_too(pebble: Pebble) -> None:
    """TLS-ALPN-01 (RFC 8737) on a port of ours, again with the same account; the port is free again afterwards."""
    settings = pebble.token(http_port=None, tls_port=pebble.tls_port)
    for _ in range(2):
        chain = read_chain(issuer(settings)(request_for("localhost")))
        check_chain(chain, ec_key(), datetime.now(UTC) + timedelta(seconds=5), ["localhost"])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", pebble.tls_port)) != 0


def test_a_proof_s_certificate_is_for_one_name_and_has_its_own_key() -> None:
    """What stands in it is RFC 8737's; a name that is not proved gets an alert."""
    port, account = free_port(), JWKRSA(key=rsa_key().private)
    seen: list[x509.Certificate] = []
    with proving({"tls_port": port}) as (kind, publish):
        assert kind is TlsAlpn01
        for name in ("A.example", "b.example"):
            publish(name, TlsAlpn01(token=name.encode().ljust(16, b"-")), account)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1", ACME_TLS])
        for name in ("a.example", "b.example"):
            with (
                socket.create_connection(("127.0.0.1", port), 20) as plain,
                context.wrap_socket(plain, server_hostname=name) as secure,
            ):
                assert secure.selected_alpn_protocol() == ACME_TLS
                seen.append(x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b""))
        with (
            socket.create_connection(("127.0.0.1", port), 20) as plain,
            pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"),
        ):
            context.wrap_socket(plain, server_hostname="c.example")
    assert seen[0].public_key() != seen[1].public_key()
    digest = hashlib.sha256(TlsAlpn01(token=b"A.example".ljust(16, b"-")).key_authorization(account).encode()).digest()
    found = seen[0].extensions.get_extension_for_oid(ACME_IDENTIFIER)
    assert found.critical
    assert found.value.value == b"\x04\x20" + digest  # type: ignore[attr-defined]


def test_what_the_server_refuses_is_one_sentence(pebble: Pebble, tmp_path: Path) -> None:
    """A name that is not proved, no server, a server that is not trusted, no way to prove."""
    account = str(tmp_path / "account.pem")  # Pebble takes one in a hundred of an account's earlier proofs for the next
    unproved = pebble.token(http_port=None, webroot=str(tmp_path), account_key=account)
    away = pebble.token(directory_url=f"https://localhost:{free_port()}/dir")
    (tmp_path / "other.pem").write_bytes(certificate(rsa_key(), "localhost").public_bytes(Encoding.PEM))
    strange = pebble.token(ca_file=str(tmp_path / "other.pem"))
    unanswered = pebble.token(
        http_port=None, tls_port=free_port(), account_key=account
    )  # the server asks at another port
    for settings in (unproved, unanswered, away, strange):
        with pytest.raises(MachineError, match="the ACME server did not issue") as caught:
            issuer(settings)(request_for("localhost"))
        assert "\n" not in caught.value.message
    with pytest.raises(AlcoveError, match="has a webroot, an http_port or a tls_port"):
        issuer(pebble.token(http_port=None))(request_for("localhost"))


def test_who_breaks_off_leaves_no_word(capfd: pytest.CaptureFixture[str]) -> None:
    """Ports of the open Internet are looked at by all: a reset is no line of the agent's log, and no traceback."""
    port = free_port()
    with proving({"http_port": port}):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), 20) as stream:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream.sendall(b"GET /")
        time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", port), 20) as stream:
            stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b" 404 " in stream.recv(100)
    assert capfd.readouterr().err == ""
