"""``alcove-enclave ingress``."""

from __future__ import annotations

import argparse
import asyncio
from typing import Final

from alcove.cli import output
from alcove.proxy import ingress, ports
from alcove.proxy.service import stopped_by_signals

_EXAMPLE: Final = "example:\n  alcove-enclave ingress 443:8443"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Ports."""
    parser.epilog = _EXAMPLE
    parser.add_argument(
        "mappings",
        nargs="+",
        metavar="VSOCKPORT[:TCPPORT]",
        help="the parent's connections to the first go to the second",
    )


def run(arguments: argparse.Namespace) -> None:
    """Forward until a signal ends it."""
    mappings = [ports.parse(text, max_port=ports.MAX_VSOCK, max_target=ports.MAX_TCP) for text in arguments.mappings]

    async def serve() -> None:
        async with stopped_by_signals() as stop:
            said = ", ".join(f"{mapping.port} → {mapping.target}" for mapping in mappings)
            await ingress.serve(mappings, stop, lambda: output.say(f"vsock ports lead to TCP ports: {said}"))

    asyncio.run(serve())
