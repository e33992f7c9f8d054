"""``alcove-enclave attestation-server``: documents by HTTP, for programs in any language."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Final

from alcove.cli import output
from alcove.sdk import nsm
from alcove.sdk.servers.attestation import PATH, AttestationServer
from alcove.sdk.servers.http_server import HttpServer

DEFAULT_PORT: Final = 4567
_TEXT: Final = f"""\
attestation documents by HTTP on the enclave's loopback

  GET  {PATH}?nonce=HEX&user_data=HEX
  POST {PATH}  {{"nonce": base64, "user_data": base64, "public_key": PEM}}, content-type: application/json

The answer is the document, application/cbor."""
_EXAMPLE: Final = f"""\
example:
  alcove-enclave attestation-server &
  curl -s http://127.0.0.1:{DEFAULT_PORT}{PATH}?nonce=00112233 > document.cbor"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The port."""
    parser.description, parser.epilog = _TEXT, _EXAMPLE
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"on 127.0.0.1; {DEFAULT_PORT}")


def run(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    server = HttpServer(AttestationServer(nsm.default().attestation), port=arguments.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    output.say(f"documents at {server.url}{PATH}")
    server.serve()
