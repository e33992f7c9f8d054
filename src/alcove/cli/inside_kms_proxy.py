"""``alcove-enclave kms-proxy``: KMS for any AWS SDK, attested."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from alcove.cli import output
from alcove.cli.parsers import add_proxy_port
from alcove.errors import MachineError, UsageError
from alcove.sdk import clock, credentials, entropy, nsm
from alcove.sdk.endpoint import PROXY_PORT, Credentials, Endpoint
from alcove.sdk.servers.http_server import HttpServer
from alcove.sdk.servers.kms_proxy import KmsProxy, environment
from alcove.sdk.tls import TcpTransport, Transport, VsockTransport

DEFAULT_PORT: Final = 4566
_TEXT: Final = """\
KMS on the enclave's loopback, for AWS's SDKs in every language: it adds an attestation document to the calls that can
carry one, signs them with the credentials given to it, and opens the envelopes that come back.

It reads its credentials from --credentials, from AWS_ACCESS_KEY_ID and its like, or from
AWS_CONTAINER_CREDENTIALS_FULL_URI. A caller must sign with the same ones. With a PROGRAM it makes an access key for
that program alone, sets AWS_ENDPOINT_URL_KMS and the rest for it, and ends with it and with its status."""
_EXAMPLE: Final = """\
example:
  alcove-enclave kms-proxy --ca-file /app/kms-ca.pem -- node /app/app.js"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The server, the KMS, the program."""
    parser.description, parser.epilog = _TEXT, _EXAMPLE
    parser.add_argument("--port", type=int, help=f"on 127.0.0.1; {DEFAULT_PORT}, or a free one for a PROGRAM")
    parser.add_argument("--region", help="AWS_REGION by default, or us-east-1")
    parser.add_argument("--endpoint", metavar="HOST[:PORT]", help="of AWS_ENDPOINT_URL_KMS by default, or AWS's")
    parser.add_argument("--ca-file", metavar="PEM", help="AWS_CA_BUNDLE by default, or the image's trust store")
    add_proxy_port(parser, PROXY_PORT)
    parser.add_argument("--connect", metavar="HOST:PORT", help="reach KMS over TCP instead")
    parser.add_argument("--credentials", type=Path, metavar="FILE", help="JSON, read again before each call")
    parser.add_argument("--key", action="append", default=[], metavar="ARN", help="refuse answers from other keys")
    parser.add_argument("program", nargs="*", metavar="PROGRAM", help="run this, and serve it alone")


def run(arguments: argparse.Namespace) -> int | None:
    """Serve until a signal ends it, or the program."""
    module = nsm.default()
    entropy.seed(module)
    _keep_time(module)
    region = arguments.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    own = credentials.source(os.environ, arguments.credentials)
    host = arguments.endpoint or _host(os.environ.get("AWS_ENDPOINT_URL_KMS", ""))
    ca_file = arguments.ca_file or os.environ.get("AWS_CA_BUNDLE") or None
    endpoint = Endpoint(region, own, host, ca_file=ca_file, transport=_transport(arguments))
    local = Credentials.random()
    callers = (lambda: local) if arguments.program else own
    port = arguments.port if arguments.port is not None else 0 if arguments.program else DEFAULT_PORT
    server = HttpServer(KmsProxy(endpoint, callers, keys=arguments.key), port=port)
    if not arguments.program:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        output.say(f"AWS_ENDPOINT_URL_KMS={server.url}")
        server.serve()
        return None
    with server.serving() as url:
        kept = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
        return _run(arguments.program, kept | environment(url, region, local))


def _host(url: str) -> str | None:
    """The KMS that the environment names; one without TLS is this proxy, as its callers see it."""
    return url.removeprefix("https://").rstrip("/") if url.startswith("https://") else None


def _keep_time(module: nsm.Nsm) -> None:
    try:
        clock.correct(module)
    except PermissionError:
        output.warn("the clock is wrong and this user may not set it: certificates may seem invalid")


def _transport(arguments: argparse.Namespace) -> Transport:
    if arguments.connect is None:
        return VsockTransport(arguments.proxy_port)
    host, _, port = arguments.connect.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--connect is HOST:PORT, not {arguments.connect}")
    return TcpTransport(host.strip("[]"), int(port))


# the proxy's own, beside the access key that the program's replaces
_PRIVATE: Final = {
    "AWS_SESSION_TOKEN", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN",
}  # fmt: skip


def _run(program: list[str], environment: dict[str, str]) -> int:
    """Run the program, hand signals on to it, and return its status as a shell gives it."""
    try:
        child = subprocess.Popen(program, env=environment)
    except OSError as error:
        raise MachineError(f"{program[0]} cannot be run: {error.strerror}") from None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: child.send_signal(number))
    status = child.wait()
    return status if status >= 0 else 128 - status
