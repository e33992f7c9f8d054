"""``alcove egress-relay``: the parent's end of the enclaves' egress proxies."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import signal
from pathlib import Path
from typing import Final

from alcove.cli import output
from alcove.cli.chosen import Chosen
from alcove.cli.parsers import Commands, command
from alcove.enclave import runtime
from alcove.enclave.paths import Paths
from alcove.errors import AlcoveError, UsageError

OWNER: Final = "the parent's list"
_TEXT: Final = """\
let enclaves open connections to what a list allows

The other end is `alcove-enclave egress` in the enclave, whose own list is measured with its image; this list is the
parent's and holds as well. Names are resolved here. SIGHUP reads the list again; open connections stay.

The list has a rule a line, and what no rule allows is refused:

    allow kms.*.amazonaws.com:443       # * is one label of a name
    allow **.example.org:443,8443       # ** is one or more, in front
    allow 192.0.2.0/24:8000-8100
    deny  10.0.0.0/8                    # also as the address of a name that is allowed"""


def add_commands(commands: Commands) -> None:
    """Add ``egress-relay``."""
    example = "alcove egress-relay --rules egress.rules --enclave web"
    parser = command(commands, "egress-relay", egress_relay, "let enclaves reach what a list allows", example)
    parser.description = _TEXT
    parser.add_argument("--rules", metavar="FILE", type=Path, required=True, help="the list")
    parser.add_argument("--port", default="3128", help="the vsock port that enclaves connect to; 3128")
    parser.add_argument(
        "--enclave", action="append", default=[], metavar="ENCLAVE", help="only this one, by name or id; again for more"
    )
    parser.add_argument(
        "--resolve", action="append", default=[], metavar="NAME=ADDRESS", help="an address for a name; the list holds"
    )
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", "--ipv4", action="store_const", const="4", dest="family", help="IPv4 only")
    family.add_argument("-6", "--ipv6", action="store_const", const="6", dest="family", help="IPv6 only")
    parser.add_argument("--metrics", metavar="[ADDRESS:]PORT", help="answer Prometheus there, on 127.0.0.1 if not said")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for every connection")


def egress_relay(arguments: argparse.Namespace) -> None:
    """Relay until a signal ends it."""
    from alcove.proxy import egress_relay, lists, ports, rules  # noqa: PLC0415 - asyncio is for this command alone
    from alcove.proxy.service import stopped_by_signals  # noqa: PLC0415

    def load() -> rules.Rules:
        return rules.parse(lists.read(arguments.rules), OWNER)

    paths = Paths.from_environment()
    runtime.prepare(paths)
    chosen = Chosen(paths, arguments.enclave)

    def admit(cid: int) -> str:
        try:
            return chosen.name(cid)
        except AlcoveError as error:
            raise rules.RefusedError(error.message) from None

    metrics = arguments.metrics
    config = egress_relay.RelayConfig(
        load,
        port=ports.parse_port(arguments.port, ports.MAX_VSOCK),
        admit=admit,
        pinned=dict(map(_pinned, arguments.resolve)),
        family=arguments.family,
        metrics=None if metrics is None else ports.parse_place(metrics),
    )

    async def serve() -> None:
        again = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, again.set)
        async with stopped_by_signals() as stop:
            said = f"enclaves ask for connections on port {config.port}"
            await egress_relay.serve(config, stop, lambda: output.say(said), again)

    output.log_to_stderr("egress-relay", verbose=arguments.verbose)
    asyncio.run(serve())


def _pinned(text: str) -> tuple[str, str]:
    name, _, address = text.partition("=")
    try:
        pinned = name.lower().removesuffix("."), str(ipaddress.ip_address(address))
    except ValueError:
        pinned = "", ""
    if not pinned[0]:
        raise UsageError(f"`{text}` is not NAME=ADDRESS")
    return pinned
