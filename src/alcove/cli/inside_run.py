"""``alcove-enclave run``: an application, and what it needs beside it, in one command for an image's CMD."""

from __future__ import annotations

import argparse
import asyncio
import shlex
from typing import Final

from alcove.cli.inside_credentials import TCP_PORT
from alcove.cli.inside_egress import add_egress, egress_config
from alcove.errors import UsageError
from alcove.proxy import application, companions, lease, ports
from alcove.proxy.application import Watch
from alcove.proxy.companions import Companions
from alcove.proxy.ports import Mapping

_EXAMPLE: Final = """\
example, in a Dockerfile:
  COPY egress.rules /etc/alcove/egress.rules
  CMD ["alcove-enclave", "run", "--egress", "--ingress", "443:8443", "--", "python3", "/app/server.py"]"""


_LONGEST_INTERVAL: Final = 86400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to start, and beside what."""
    parser.epilog = _EXAMPLE
    parser.add_argument("--egress", action="store_true", help="the egress proxy, and HTTPS_PROXY for the program")
    add_egress(parser)
    parser.add_argument(
        "--ingress",
        action="append",
        default=[],
        metavar="VSOCKPORT[:TCPPORT]",
        help="lead a vsock port to a server",
    )
    parser.add_argument("--credentials", action="store_true", help="the parent's credentials, where SDKs look for them")
    parser.add_argument("--lifeline", action="store_true", help="let the parent ask how it fares, and for its end")
    parser.add_argument("--log", action="store_true", help="let the parent see its output; with --lifeline's")
    parser.add_argument("--health", metavar="COMMAND", help="a check whose status is its health; with --lifeline's")
    parser.add_argument("--health-interval", metavar="SECONDS", type=float, default=30.0, help="30")
    parser.add_argument("program", metavar="PROGRAM", help="its name or path")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="its own")


def run(arguments: argparse.Namespace) -> int:
    """Run the program; its status is ours."""
    if arguments.dns and not arguments.egress:
        raise UsageError("--dns is of the egress proxy", hint="add --egress")
    wanted = Companions(
        egress_config(arguments) if arguments.egress else None,
        resolver=arguments.dns,
        ingress=[ports.parse(text, max_port=ports.MAX_VSOCK, max_target=ports.MAX_TCP) for text in arguments.ingress],
        credentials=Mapping("", TCP_PORT, lease.PORT) if arguments.credentials else None,
    )
    if arguments.dns:
        companions.use_resolver()
    watch = None
    if not 0.1 <= arguments.health_interval <= _LONGEST_INTERVAL:
        raise UsageError(f"--health-interval is from 0.1 to {_LONGEST_INTERVAL:.0f} seconds")
    if arguments.lifeline or arguments.log or arguments.health:
        watch = Watch(arguments.log, _words(arguments.health), arguments.health_interval)
    return asyncio.run(application.run(wanted, [arguments.program, *arguments.arguments], watch))


def _words(command: str | None) -> list[str]:
    try:
        return shlex.split(command or "")
    except ValueError as error:
        raise UsageError(f"--health `{command}`: {str(error).lower()}") from None
