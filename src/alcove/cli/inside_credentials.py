"""``alcove-enclave credentials``: the parent's credentials for unmodified SDKs in the enclave."""

from __future__ import annotations

import argparse
import asyncio
from typing import Final

from alcove.cli import output
from alcove.proxy import lease, outward, ports
from alcove.proxy.ports import Mapping
from alcove.proxy.service import stopped_by_signals

TCP_PORT: Final = 9040
_EXAMPLE: Final = """\
example:
  alcove-enclave credentials &
  export AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:9040/credentials"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Ports."""
    parser.epilog = _EXAMPLE
    parser.add_argument("--port", default=str(TCP_PORT), help="the TCP port on 127.0.0.1; 9040")
    parser.add_argument("--parent-port", default=str(lease.PORT), metavar="PORT", help="the parent's vsock port; 9040")


def run(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    port, parent = arguments.port, arguments.parent_port
    mapping = Mapping("", ports.parse_port(port, ports.MAX_TCP), ports.parse_port(parent, ports.MAX_VSOCK))
    said = f"credentials are at http://127.0.0.1:{mapping.port}{lease.PATH}"

    async def serve() -> None:
        async with stopped_by_signals() as stop:
            await outward.serve(mapping, stop, lambda _: output.say(said))

    asyncio.run(serve())
