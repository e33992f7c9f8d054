"""Certificates from an ACME server (RFC 8555) for requests that an enclave made, by certbot's `acme`.

The account's key is the parent's; the certificate's never leaves the enclave. Names are proved by HTTP-01: either the
web server serves a directory (`webroot`), or we answer on a port ourselves (`http_port`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from acme import challenges, client, messages
from acme import errors as acme_errors
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from josepy.errors import Error as JoseError
from josepy.jwk import JWKRSA
from requests.exceptions import RequestException

from alcove.apps.acm.settings import TokenSettings
from alcove.errors import MachineError, UsageError

ORDER_SECONDS: Final = 90.0
WELL_KNOWN: Final = "/.well-known/acme-challenge/"
_USER_AGENT: Final = "alcove-acm"
Publish = Callable[[str, str], None]  # a token and what must be read there


def issuer(token: TokenSettings) -> Callable[[str], str]:
    """What turns a request into a chain.

    Args:
        token: With a source Acme: `directory_url`, `account_key` (a file, made when it is not there), `webroot` or
            `http_port`, and if wanted `contact` and `ca_file`, by which the server is trusted.
    """
    members = token.members

    def issue(request_pem: str) -> str:
        try:
            with _publisher(members) as publish:
                return _order(members, request_pem, publish)
        except (acme_errors.Error, messages.Error, RequestException, JoseError) as error:
            said = " ".join(str(error).split())
            raise MachineError(f"the ACME server did not issue: {said or type(error).__name__:.200}") from None

    return issue


def _order(members: Mapping[str, Any], request_pem: str, publish: Publish) -> str:
    key = JWKRSA(key=_account_key(Path(members["account_key"])))
    network = client.ClientNetwork(key, user_agent=_USER_AGENT, verify_ssl=True)
    if members.get("ca_file") is not None:
        network.verify_ssl = str(members["ca_file"])  # type: ignore[assignment]  # it is requests' `verify`
    directory = client.ClientV2.get_directory(str(members["directory_url"]), network)
    server = client.ClientV2(directory, network)
    _register(server, members)
    order = server.new_order(request_pem.encode())
    for authorization in order.authorizations:
        if authorization.body.status == messages.STATUS_VALID:
            continue  # proved a while ago
        challenge = _http01(authorization)
        response, validation = challenge.response_and_validation(key)
        publish(challenge.chall.encode("token"), validation)
        server.answer_challenge(challenge, response)
    deadline = datetime.now() + timedelta(seconds=ORDER_SECONDS)  # noqa: DTZ005 - `acme` compares with naive times
    return str(server.poll_and_finalize(order, deadline).fullchain_pem)


def _register(server: client.ClientV2, members: Mapping[str, Any]) -> None:
    """The account of the key, which is made on the first use."""
    contact = members.get("contact")
    data = messages.NewRegistration.from_data(email=contact, terms_of_service_agreed=True)
    try:
        server.new_account(data)
    except acme_errors.ConflictError as there:
        found = messages.RegistrationResource(uri=there.location, body=messages.Registration())
        server.net.account = found
        server.query_registration(found)


def _http01(authorization: messages.AuthorizationResource) -> Any:
    for challenge in authorization.body.challenges:
        if isinstance(challenge.chall, challenges.HTTP01):
            return challenge
    name = authorization.body.identifier.value
    raise MachineError(f"the ACME server does not prove {name} by http-01", hint="wildcards need another way")


def _account_key(path: Path) -> rsa.RSAPrivateKey:
    try:
        if not path.exists():
            key = rsa.generate_private_key(65537, 2048)
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(pem)
            return key
        found = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise MachineError(f"the ACME account's key {path} cannot be used: {error}") from None
    if not isinstance(found, rsa.RSAPrivateKey):
        raise UsageError(f"the ACME account's key {path} is no RSA key")
    return found


@contextmanager
def _publisher(members: Mapping[str, Any]) -> Iterator[Publish]:
    """Where the server finds the proofs; they are gone when the context ends."""
    if members.get("webroot") is not None:
        with _in_webroot(Path(members["webroot"])) as publish:
            yield publish
    elif members.get("http_port") is not None:
        with _on_port(int(members["http_port"])) as publish:
            yield publish
    else:
        raise UsageError("the source Acme has a webroot or an http_port")


@contextmanager
def _in_webroot(webroot: Path) -> Iterator[Publish]:
    directory, written = webroot / WELL_KNOWN.strip("/"), list[Path]()

    def publish(token: str, validation: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / Path(token).name
        path.write_text(validation)
        written.append(path)

    try:
        yield publish
    finally:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()


@contextmanager
def _on_port(port: int) -> Iterator[Publish]:
    proofs: dict[str, str] = {}

    class Answer(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            proof = proofs.get(self.path)
            self.send_response(404 if proof is None else 200)
            self.end_headers()
            self.wfile.write((proof or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer(("", port), Answer)
    except OSError as error:
        raise MachineError(f"cannot answer the ACME server on port {port}: {error.strerror}") from None
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield lambda token, validation: proofs.__setitem__(WELL_KNOWN + token, validation)
        finally:
            server.shutdown()
            thread.join()
