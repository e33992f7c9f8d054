"""One KMS, as an enclave reaches it: signed requests over TLS that ends here (sdk.md §2)."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from alcove.errors import UsageError
from alcove.sdk import sigv4
from alcove.sdk.http import Answer, encode_post
from alcove.sdk.tls import Transport, VsockTransport, exchange, make_context

PROXY_PORT: Final = 8000  # sdk.md §2
CONTENT_TYPE: Final = "application/x-amz-json-1.1"
# sdk.md §2: the last label of a partition, by the region's prefix
_SUFFIXES: Final = {
    "cn-": "amazonaws.com.cn",
    "eusc-": "amazonaws.eu",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "eu-isoe-": "cloud.adc-e.uk",
    "us-isof-": "csp.hci.ic.gov",
}
_ENDPOINT = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; the session token comes with temporary ones."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def random(cls) -> Credentials:
        """An access key that nobody else knows, for two programs of one enclave."""
        return cls(f"LOCAL{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30))


class Endpoint:
    """Where calls go and who signs them; threads may share it.

    Args:
        region: Such as "us-east-1".
        credentials: An access key, or a function that gives the current one before each call.
        host: The server's name, with `:port` when that is not 443; AWS's name for the region by default. The
            certificate must carry the name.
        ca_file: PEM certificates that the server is trusted by; pin yours. None trusts the image's default store.
        transport: The way to the server; the parent's vsock-proxy on port 8000 when None.

    Raises:
        UsageError: `host` is not a host.
        MachineError: `ca_file` cannot be used.
    """

    def __init__(
        self,
        region: str,
        credentials: Credentials | Callable[[], Credentials],
        host: str | None = None,
        *,
        ca_file: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.region = region
        self._credentials = credentials
        self._host = default_host(region) if host is None else host
        self._server_name = _server_name(self._host)
        self._context = make_context(ca_file)
        self._transport = VsockTransport(PROXY_PORT) if transport is None else transport

    def post(self, target: str, body: bytes, moment: float) -> Answer:
        """The server's answer to one call, whatever its status.

        Args:
            target: The value of `x-amz-target`, such as "TrentService.Decrypt".
            body: JSON.
            moment: The time that the signature names, in seconds since the epoch.

        Raises:
            ProtocolError: The server is not what it should be.
            MachineError: It cannot be reached.
        """
        credentials = self._credentials() if callable(self._credentials) else self._credentials
        headers = {
            "host": self._host,
            "content-type": CONTENT_TYPE,
            "x-amz-date": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment)),
            "x-amz-target": target,
        }
        if credentials.session_token is not None:
            headers["x-amz-security-token"] = credentials.session_token
        headers["authorization"] = sigv4.authorization(
            headers,
            body,
            access_key_id=credentials.access_key_id,
            secret_access_key=credentials.secret_access_key,
            region=self.region,
            service="kms",
        )
        return exchange(self._transport, self._context, self._server_name, encode_post(headers, body))


def default_host(region: str) -> str:
    """AWS's name of KMS in a region (sdk.md §2)."""
    suffix = next((suffix for prefix, suffix in _SUFFIXES.items() if region.startswith(prefix)), "amazonaws.com")
    return f"kms.{region}.{suffix}"


def _server_name(host: str) -> str:
    match = _ENDPOINT.fullmatch(host)
    if match is None:
        raise UsageError(f"{host!r} is not a host name, with or without a port")
    return match["name"].strip("[]")
