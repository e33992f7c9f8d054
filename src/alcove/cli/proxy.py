"""vsock-proxy, with AWS's flags (cli.md §6)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from alcove.cli import output
from alcove.enclave import runtime
from alcove.enclave.config import parse_number
from alcove.enclave.paths import Paths
from alcove.errors import UsageError
from alcove.types import Port

AWS_ALLOWLIST: Final = "/etc/nitro_enclaves/vsock-proxy.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """AWS's flags."""
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", "--ipv4", action="store_const", const="4", dest="family", help="IPv4 only")
    family.add_argument("-6", "--ipv6", action="store_const", const="6", dest="family", help="IPv6 only")
    parser.add_argument(
        "-w", "--num_workers", default="4", metavar="N", help="accepted for AWS's sake; no limit is needed"
    )
    parser.add_argument("--config", default=AWS_ALLOWLIST, metavar="YAML", help="the allow list")
    parser.add_argument("local_port", help="the port that enclaves connect to, on CID 3")
    parser.add_argument("remote_addr")
    parser.add_argument("remote_port")
    parser.set_defaults(handler=vsock_proxy)


def vsock_proxy(arguments: argparse.Namespace) -> None:
    """Forward until a signal ends it."""
    from alcove.proxy.vsock_proxy import ProxyConfig, run  # noqa: PLC0415 - asyncio is for this command alone

    if parse_number("num_workers", arguments.num_workers) == 0:
        raise UsageError("Number of workers must not be 0")
    paths = Paths.from_environment()
    runtime.prepare(paths)
    local = Port(parse_number("local_port", arguments.local_port))
    config = ProxyConfig(
        socket_path=paths.port(local),
        remote_host=arguments.remote_addr,
        remote_port=parse_number("remote_port", arguments.remote_port, bits=16),
        allowlist=Path(arguments.config),
        family=arguments.family,
    )
    run(config, lambda: output.say(f"enclaves reach {arguments.remote_addr}:{arguments.remote_port} on port {local}"))
