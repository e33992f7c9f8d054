"""``alcove-enclave egress``."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Final

from alcove.cli import output
from alcove.proxy import companions, ports
from alcove.proxy.companions import Companions
from alcove.proxy.egress import RULES_FILE, EgressConfig
from alcove.proxy.egress_relay import PORT
from alcove.proxy.service import stopped_by_signals

_EXAMPLE: Final = """\
example:
  alcove-enclave egress &
  export HTTPS_PROXY=http://127.0.0.1:3128
  curl https://kms.us-east-1.amazonaws.com/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``egress``."""
    parser.epilog = _EXAMPLE
    add_egress(parser)


def add_egress(parser: argparse.ArgumentParser) -> None:
    """The proxy's own arguments."""
    parser.add_argument("--rules", metavar="FILE", type=Path, default=Path(RULES_FILE), help=f"the list; {RULES_FILE}")
    parser.add_argument("--port", default=str(PORT), help="the TCP port of the proxy on 127.0.0.1; 3128")
    parser.add_argument("--relay-port", default=str(PORT), metavar="PORT", help="the relay's vsock port; 3128")
    parser.add_argument("--dns", action="store_true", help="answer DNS on 127.0.0.1 for programs that know no proxy")


def egress_config(arguments: argparse.Namespace) -> EgressConfig:
    """What the arguments ask for.

    Raises:
        InputError: The list is none.
        UsageError: A port cannot be.
    """
    port = ports.parse_port(arguments.port, ports.MAX_TCP)
    relay = ports.parse_port(arguments.relay_port, ports.MAX_VSOCK)
    return EgressConfig(companions.load_rules(arguments.rules), port, relay)


def run(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    config = egress_config(arguments)
    if arguments.dns:
        companions.use_resolver()
    said = f"the egress proxy is http://127.0.0.1:{config.port}, with {len(config.rules.rules)} rules"

    async def serve() -> None:
        async with stopped_by_signals() as stop:
            await companions.serve(Companions(config, resolver=arguments.dns), stop, lambda: output.say(said))

    asyncio.run(serve())
