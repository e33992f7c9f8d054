"""Certificates from an ACME server (RFC 8555) for requests that an enclave made, by certbot's `acme`.

The account's key is the parent's; the certificate's never leaves the enclave. `acme_proofs` proves the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from acme import challenges, client, messages
from acme import errors as acme_errors
from cryptography.exceptions import UnsupportedAlgorithm
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

from alcove.apps.acm.acme_proofs import Publish, proving
from alcove.apps.acm.files import write_atomically
from alcove.apps.acm.settings import TokenSettings
from alcove.errors import MachineError, UsageError

ORDER_SECONDS: Final = 90.0
_USER_AGENT: Final = "alcove-acm"


def issuer(token: TokenSettings) -> Callable[[str], str]:
    """What turns a request into a chain.

    Args:
        token: With a source Acme: `directory_url`, `account_key` (a file, made when it is not there), `webroot`,
            `http_port` or `tls_port`, and if wanted `contact` and `ca_file`, by which the server is trusted.
    """
    members = token.members

    def issue(request_pem: str) -> str:
        try:
            with proving(members) as (kind, publish):
                return _order(members, request_pem, kind, publish)
        except (acme_errors.Error, messages.Error, RequestException, JoseError) as error:
            said = " ".join(str(error).split())
            raise MachineError(f"the ACME server did not issue: {said or type(error).__name__:.200}") from None

    return issue


def _order(members: Mapping[str, Any], request_pem: str, kind: type[challenges.Challenge], publish: Publish) -> str:
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
        challenge = _challenge(authorization, kind)
        publish(authorization.body.identifier.value, challenge.chall, key)
        server.answer_challenge(challenge, challenge.response(key))
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


def _challenge(authorization: messages.AuthorizationResource, kind: type[challenges.Challenge]) -> Any:
    for challenge in authorization.body.challenges:
        if isinstance(challenge.chall, kind):
            return challenge
    name = authorization.body.identifier.value
    raise MachineError(f"the ACME server does not prove {name} by {kind.typ}", hint="wildcards need another way")


def _account_key(path: Path) -> rsa.RSAPrivateKey:
    try:
        if not path.exists():
            key = rsa.generate_private_key(65537, 2048)
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_atomically(path, pem, 0o600)
            return key
        found = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MachineError(f"the ACME account's key {path} cannot be used: {error}") from None
    if not isinstance(found, rsa.RSAPrivateKey):
        raise UsageError(f"the ACME account's key {path} is no RSA key")
    return found
