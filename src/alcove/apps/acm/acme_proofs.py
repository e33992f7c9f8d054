"""How names are proved to an ACME server: HTTP-01 (RFC 8555 §8.3) and TLS-ALPN-01 (RFC 8737).

The certificate of a TLS-ALPN-01 proof has a key of its own, made here for that one proof and forgotten after it, in no
file. Neither the account's key nor the one in the enclave takes part, so nothing has to leave the enclave for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from acme import challenges
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from josepy.jwk import JWK

from alcove.codec.der import OCTET_STRING
from alcove.codec.der_writer import encode
from alcove.errors import MachineError, UsageError

WELL_KNOWN: Final = "/.well-known/acme-challenge/"
ACME_TLS: Final = "acme-tls/1"  # RFC 8737 §6.2
ACME_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")  # RFC 8737 §6.1
_CLIENT_SECONDS: Final = 5.0

# certbot's library knows tls-alpn-01 no more: these are its two classes, by the library's own way to add a challenge


@challenges.ChallengeResponse.register
class TlsAlpn01Response(challenges.KeyAuthorizationChallengeResponse):
    """The word that a proof is ready."""

    typ = "tls-alpn-01"


@challenges.Challenge.register
class TlsAlpn01(challenges.KeyAuthorizationChallenge):
    """What the server asks for; the validation is what stands in the certificate."""

    response_cls = TlsAlpn01Response
    typ = response_cls.typ

    def validation(self, account_key: JWK, **_: Any) -> bytes:
        """SHA-256 of the key authorization."""
        return hashlib.sha256(self.key_authorization(account_key).encode()).digest()


Publish = Callable[[str, Any, JWK], None]  # a name, the challenge for it, the account's key


@contextmanager
def proving(members: Mapping[str, Any]) -> Iterator[tuple[type[challenges.Challenge], Publish]]:
    """The kind of challenge that a source can meet, and how; the proofs are gone when the context ends.

    Args:
        members: The source's, with one of `webroot` (a directory that the web server serves), `http_port` and
            `tls_port`, on which we answer ourselves.

    Raises:
        UsageError: None of them is there.
        MachineError: The port cannot be had.
    """
    if members.get("webroot") is not None:
        with _in_webroot(Path(members["webroot"])) as publish:
            yield challenges.HTTP01, publish
    elif members.get("http_port") is not None:
        with _on_http_port(int(members["http_port"])) as publish:
            yield challenges.HTTP01, publish
    elif members.get("tls_port") is not None:
        with _on_tls_port(int(members["tls_port"])) as publish:
            yield TlsAlpn01, publish
    else:
        raise UsageError("the source Acme has a webroot, an http_port or a tls_port")


@contextmanager
def _in_webroot(webroot: Path) -> Iterator[Publish]:
    directory, written = webroot / WELL_KNOWN.strip("/"), list[Path]()

    def publish(_: str, challenge: Any, key: JWK) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / Path(challenge.encode("token")).name
        path.write_text(challenge.validation(key))
        written.append(path)

    try:
        yield publish
    finally:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()


@contextmanager
def _on_http_port(port: int) -> Iterator[Publish]:
    proofs: dict[str, str] = {}

    class Answer(BaseHTTPRequestHandler):
        timeout = _CLIENT_SECONDS

        def do_GET(self) -> None:
            proof = proofs.get(self.path)
            self.send_response(404 if proof is None else 200)
            self.end_headers()
            self.wfile.write((proof or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    def publish(_: str, challenge: Any, key: JWK) -> None:
        proofs[WELL_KNOWN + challenge.encode("token")] = challenge.validation(key)

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that broke off; the library's own way is a traceback on standard error."""

    with _serving(port, lambda: Server(("", port), Answer)):
        yield publish


@contextmanager
def _on_tls_port(port: int) -> Iterator[Publish]:
    """Each name has a context of its own, with the certificate that proves it; other names get an alert."""
    contexts: dict[str, ssl.SSLContext] = {}

    def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        found = contexts.get((name or "").lower())
        if found is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = found
        return None

    front = _context()
    front.sni_callback = choose

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(_CLIENT_SECONDS)
            with contextlib.suppress(OSError), front.wrap_socket(self.request, server_side=True):
                pass  # RFC 8737 §3: the handshake is all

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    def publish(name: str, challenge: Any, key: JWK) -> None:
        contexts[name.lower()] = _proof(name, challenge.validation(key))

    with _serving(port, lambda: Server(("", port), Answer)):
        yield publish


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([ACME_TLS])
    return context


def _proof(name: str, validation: bytes) -> ssl.SSLContext:
    """A context with the certificate of RFC 8737 §3 for a name."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ACME")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    proof = x509.UnrecognizedExtension(ACME_IDENTIFIER, encode(OCTET_STRING, validation))
    certificate = builder.add_extension(proof, critical=True).sign(key, hashes.SHA256())
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    context = _context()
    # Python's ssl reads keys from files alone: this one is in memory
    with os.fdopen(os.memfd_create("acme"), "wb") as file:
        file.write(text + certificate.public_bytes(Encoding.PEM))
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


@contextmanager
def _serving(port: int, make: Callable[[], socketserver.TCPServer]) -> Iterator[None]:
    try:
        server = make()
    except OSError as error:
        raise MachineError(f"cannot answer the ACME server on port {port}: {error.strerror}") from None
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
