"""``alcove-enclave kmstool``: kmstool-enclave's protocol, for parents that speak it."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from typing import Final

from alcove.cli import output
from alcove.cli.parsers import add_proxy_port, vsock_port
from alcove.errors import AlcoveError
from alcove.sdk import entropy, nsm, vsock
from alcove.sdk.endpoint import PROXY_PORT, Credentials
from alcove.sdk.kms import UNSAFE_ANY_KEY, AttestedKms
from alcove.sdk.servers import kmstool
from alcove.sdk.servers.kmstool_server import serve

_TEXT: Final = """\
AWS's kmstool-enclave protocol, for kmstool-instance and what else speaks it: the parent sets credentials and sends
ciphertexts, and gets the plaintexts back. REGION and ENDPOINT in the environment are as in AWS's program."""

_log = logging.getLogger("alcove.kmstool")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """AWS's, and a CA."""
    parser.description = _TEXT
    parser.add_argument("--port", type=vsock_port, default=kmstool.PORT, help="vsock port; 3000")
    add_proxy_port(parser, PROXY_PORT)
    parser.add_argument("--region", default=os.environ.get("REGION"), help="else the parent names it")
    parser.add_argument("--ca-file", metavar="PEM", help="what KMS is trusted by; the image's trust store by default")
    parser.add_argument("--key", action="append", default=[], metavar="ARN", help="decrypt with no other key")


def run(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    module = nsm.default()
    entropy.seed(module)
    with vsock.listen(arguments.port) as listener:
        output.say(f"waiting on vsock port {arguments.port}")
        serve(listener, lambda: kmstool.Conversation(_maker(arguments), arguments.region))


def _maker(arguments: argparse.Namespace) -> kmstool.MakeClient:
    def make(region: str, credentials: Credentials) -> kmstool.Decrypt:
        kms = AttestedKms(
            region,
            credentials,
            os.environ.get("ENDPOINT"),
            proxy_port=arguments.proxy_port,
            ca_file=arguments.ca_file,
            keys=arguments.key,
        )

        def decrypt(ciphertext: bytes, context: Mapping[str, str]) -> bytes:
            try:
                return kms.decrypt(ciphertext, key_id=UNSAFE_ANY_KEY, encryption_context=context)
            except AlcoveError as error:
                _log.warning("a ciphertext was not decrypted: %s", error)
                raise

        return decrypt

    return make
