"""The ways into a real enclave and out of it: curl through both lists, a TLS server through `publish`, and many bytes.

The enclave is not in debug mode: what its documents say is its own. Its programs know nothing of vsock.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import http.client
import os
import resource
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from benchmarks import net_parent
from benchmarks.net_parent import ECHO, SINK, SOURCE, WEB, NetEnclave, service, tcp_servers
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from alcove.attestation import PCR, PolicyError, Root, verify
from alcove.enclave.paths import Paths
from alcove.proxy.service import take_descriptors

NAMES = ("good.test", "inner.test", "outer.test")
SIZE = 24 << 20  # bytes each way; benchmarks.networking takes gigabytes
GROWTH = 16 << 20  # what a process may hold more after it: buffers, and nothing that follows the size
CONNECTIONS = 1000
few_descriptors = pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4 * CONNECTIONS,
    reason="a thousand connections take more files",
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A server's certificate for all the names, with its key, and itself as the authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in NAMES]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        pem
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path, pem


class Greeter(BaseHTTPRequestHandler):
    """The parent's HTTPS server."""

    def do_GET(self) -> None:
        """Greet."""
        body = f"hello, {self.headers['Host'].partition(':')[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class World:
    """The enclave, its measurements, the parent's servers and the ports that lead into the enclave."""

    enclave: NetEnclave
    pcr0: bytes
    https: int
    servers: dict[str, int]
    published: dict[int, int]
    log: Path
    processes: dict[str, int]

    def curl(self, name: str, *flags: str, **environment: str) -> dict[str, Any]:
        """What curl in the enclave says of a name's HTTPS server."""
        argv = ["/usr/bin/curl", "-sSi", "--cacert", "/app/ca.pem", *flags, f"https://{name}:{self.https}/"]
        return self.enclave.ask(op="run", argv=argv, environment=environment)


@pytest.fixture(scope="module")
def world(cli: Any, authority: tuple[Path, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything, shared by all tests here."""
    directory, (identity, pem) = tmp_path_factory.mktemp("net"), authority
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity)
    take_descriptors()  # the programs that are started here inherit it: the supervisor serves as many as it may open
    https = ThreadingHTTPServer(("127.0.0.1", 0), Greeter)
    https.socket = context.wrap_socket(https.socket, server_side=True)
    port = https.server_address[1]
    with contextlib.ExitStack() as stack:
        threading.Thread(target=https.serve_forever, daemon=True).start()
        stack.callback(https.shutdown)
        handlers = (net_parent.echo, net_parent.sink, net_parent.source)
        servers = dict(zip(("echo", "sink", "source"), stack.enter_context(tcp_servers(*handlers)), strict=True))
        plain = ",".join(map(str, servers.values()))
        inner = f"allow good.test:{port}\nallow outer.test:{port}\nallow good.test:{plain}\n"
        outer = directory / "parent.rules"
        outer.write_text(f"allow good.test:{port},{plain}\nallow inner.test:{port}\nallow 127.0.0.1:{port},{plain}\n")
        image, measured = net_parent.build_image(directory, inner, pem, cli.environment)
        started = cli.run_enclave(image, "--enclave-name", "net", memory=512)
        stack.callback(cli.terminate, started)
        log = directory / "relay.log"
        pinned = [flag for name in NAMES for flag in ("--resolve", f"{name}=127.0.0.1")]
        relay = ("alcove", "egress-relay", "--rules", outer, "--enclave", "net", *pinned)
        relaying, _ = stack.enter_context(service(cli.environment, *relay, ready="ask for", log=log))
        published = {}
        for target in (WEB, ECHO, SINK, SOURCE):
            publish = ("alcove", "publish", "net", "-p", f"0:{target}")
            publishing, line = stack.enter_context(service(cli.environment, *publish, ready="leads to"))
            published[target] = int(line.split()[0].rpartition(":")[2])
        processes = {"egress-relay": relaying.pid, "publish": publishing.pid, "supervisor": started["ProcessID"]}
        enclave = NetEnclave(cli.run_directory, started)
        yield World(enclave, bytes.fromhex(measured["PCR0"]), port, servers, published, log, processes)


def test_curl_reaches_what_both_lists_allow(world: World) -> None:
    """Through HTTPS_PROXY; TLS ends in curl, which checks the server's certificate by an authority in the image."""
    said = world.curl("good.test")
    assert said["code"] == 0, said
    assert said["out"].startswith("HTTP/1.1 200 Connection established\n\nHTTP/1.0 200 OK\n")
    assert said["out"].endswith("hello, good.test\n")


def test_curl_reaches_it_without_knowing_of_a_proxy(world: World) -> None:
    """The enclave's resolver gives the name an address on the loopback, which leads to the same place."""
    said = world.curl("good.test", "--noproxy", "*")
    assert said["code"] == 0, said
    assert "Connection established" not in said["out"]
    assert said["out"].endswith("hello, good.test\n")
    assert world.curl("inner.test", "--noproxy", "*")["code"] == 6  # could not resolve


def test_curl_is_refused_by_the_measured_list(world: World) -> None:
    """The parent's list allows the name; it never hears of it."""
    said = world.curl("inner.test")
    assert said["code"] == 56, said  # CURLE_RECV_ERROR: the tunnel was refused
    reason = f"X-Alcove-Reason: refused: inner.test:{world.https}: no rule of the enclave's list allows it\n"
    assert said["out"].startswith("HTTP/1.1 403 Forbidden\n")
    assert reason in said["out"]
    assert "inner.test" not in world.log.read_text()


def test_curl_is_refused_by_the_parents_list(world: World) -> None:
    """The enclave's list allows the name; the refusal names the parent's, in the enclave and in the relay's log."""
    said = world.curl("outer.test")
    assert said["code"] == 56, said
    reason = f"outer.test:{world.https}: no rule of the parent's list allows it"
    assert f"X-Alcove-Reason: refused by the parent: {reason}\n" in said["out"]
    assert f"refused: net: {reason}" in world.log.read_text()


def test_a_client_verifies_whom_it_talks_to(world: World) -> None:
    """TLS ends in the enclave: its certificate's key is in a document with the client's nonce and the image's PCR0."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # no authority vouches for the certificate: the document does
    nonce = os.urandom(20)
    world.enclave.ask(op="memory")  # it is up
    connection = http.client.HTTPSConnection("127.0.0.1", world.published[WEB], context=context, timeout=120)
    connection.request("GET", f"/attestation?nonce={nonce.hex()}")
    assert isinstance(connection.sock, ssl.SSLSocket)
    certificate = x509.load_der_x509_certificate(connection.sock.getpeercert(binary_form=True) or b"")
    document = connection.getresponse().read()
    connection.close()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key = certificate.public_key().public_bytes(serialization.Encoding.DER, form)
    root = Root.from_pem((Paths.from_environment().authority / "root.pem").read_bytes())
    now = dt.datetime.now(dt.UTC)
    verified = verify(document, roots=[root], policy=PCR(0, world.pcr0), at=now, nonce=nonce)
    assert verified.document.public_key == key
    with pytest.raises(PolicyError):
        verify(document, roots=[root], policy=PCR(0, bytes(47) + b"\1"), at=now, nonce=nonce)


def test_many_bytes_leave_nothing_behind(world: World) -> None:
    """Each way through `publish` and through egress: all arrive, and no process has grown by them."""
    enclave, before = world.enclave, {name: net_parent.resident(pid) for name, pid in world.processes.items()}
    inside = enclave.ask(op="memory")["resident"]
    assert net_parent.push(world.published[SINK], SIZE) == SIZE
    assert net_parent.pull(world.published[SOURCE], SIZE) == SIZE
    assert enclave.ask(op="send", where=f"good.test:{world.servers['sink']}", size=SIZE) == {"bytes": SIZE}
    assert enclave.ask(op="receive", where=f"good.test:{world.servers['source']}", size=SIZE) == {"bytes": SIZE}
    for name, pid in world.processes.items():
        assert net_parent.resident(pid) - before[name] < GROWTH, name
    assert enclave.ask(op="memory")["resident"] - inside < GROWTH


@few_descriptors
def test_a_thousand_connections_out_of_the_enclave_at_once(world: World) -> None:
    """Through both proxies: all are open together, and each gets its own bytes back."""
    where = f"good.test:{world.servers['echo']}"
    assert world.enclave.ask(op="tunnels", where=where, count=CONNECTIONS) == {"right": CONNECTIONS}


def test_connections_do_not_want_for_descriptors(world: World) -> None:
    """The kernel gives the first process 4096; what runs beside the application has taken more, and so may it."""
    program = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    said = world.enclave.ask(op="run", argv=["/usr/bin/python3", "-c", program], environment={})
    assert said["out"] == "(16384, 16384)\n"


@few_descriptors
def test_a_thousand_connections_into_the_enclave_at_once(world: World) -> None:
    """Through `publish`: asked for in one moment, all open together, each gets its own bytes back; none is reset."""
    world.enclave.ask(op="memory")
    assert asyncio.run(net_parent.crowd(world.published[ECHO], CONNECTIONS)) == CONNECTIONS


def test_hostile_callers_do_not_take_the_way_in_down(world: World) -> None:
    """Garbage, silence and early closes on every port; then an ordinary caller is served."""
    world.enclave.ask(op="memory")
    with contextlib.ExitStack() as stack:
        for port in world.published.values():
            for data in (b"", os.urandom(4096), b"\x16\x03\x01\xff\xff", b"9" * 100000):
                with contextlib.suppress(OSError):
                    stream = socket.create_connection(("127.0.0.1", port), 60)
                    stack.callback(stream.close)
                    stream.sendall(data)
                    if len(data) % 2:
                        stream.close()
        assert net_parent.push(world.published[SINK], 1000) == 1000
        assert world.curl("good.test")["code"] == 0
