"""vsock-proxy, with AWS's flags, and with more of them (cli.md §6)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alcove.cli import output
from alcove.enclave import runtime
from alcove.enclave.paths import Paths
from alcove.errors import UsageError

if TYPE_CHECKING:
    from alcove.proxy.allowlist import Route

AWS_ALLOWLIST: Final = "/etc/nitro_enclaves/vsock-proxy.yaml"
_TEXT: Final = """\
let enclaves reach hosts and ports through this machine

With the three arguments of AWS's program, one port leads to one host and port. `listeners` in the file are many more
in the same process; then the arguments may be left out. SIGHUP reads the file again, and open connections stay."""
_MAX_LOCAL: Final = 0xFFFFFFFE  # vsock's last port stands for any
_MAX_WORKERS: Final = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """AWS's flags, and ours."""
    parser.description = _TEXT
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", "--ipv4", action="store_const", const="4", dest="family", help="IPv4 only")
    family.add_argument("-6", "--ipv6", action="store_const", const="6", dest="family", help="IPv6 only")
    parser.add_argument(
        "-w",
        "--num_workers",
        metavar="N",
        help="connections at a time on each port, the rest wait; else 4096",
    )
    parser.add_argument("--config", default=AWS_ALLOWLIST, metavar="YAML", help="the allow list, and listeners")
    parser.add_argument("--metrics", metavar="[ADDRESS:]PORT", help="answer Prometheus there, on 127.0.0.1 if not said")
    parser.add_argument(
        "--dns-ttl",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="how long a name's addresses are kept; 30",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="a line for each connection, as RUST_LOG=info does"
    )
    parser.add_argument("local_port", nargs="?", help="the port that enclaves connect to, on CID 3")
    parser.add_argument("remote_addr", nargs="?", help="a host that the list allows")
    parser.add_argument("remote_port", nargs="?", help="its TCP port")
    parser.set_defaults(handler=vsock_proxy, usage_error=parser.error)


def vsock_proxy(arguments: argparse.Namespace) -> None:
    """Forward until a signal ends it."""
    from alcove.proxy import ports, vsock_proxy  # noqa: PLC0415 - asyncio is for this command alone

    if arguments.local_port is not None and arguments.remote_port is None:
        arguments.usage_error("give LOCAL_PORT, REMOTE_ADDR and REMOTE_PORT, or none of them")
    route = _route(arguments)
    limit = _limit(arguments.num_workers)
    metrics = arguments.metrics
    paths = Paths.from_environment()
    runtime.prepare(paths)
    config = vsock_proxy.ProxyConfig(
        ports=paths.ports,
        file=Path(arguments.config),
        route=route,
        family=arguments.family,
        ttl=arguments.dns_ttl,
        metrics=None if metrics is None else ports.parse_place(metrics),
        **({} if limit is None else {"max_connections": limit}),
    )
    wanted = os.environ.get("RUST_LOG", "")
    verbose = arguments.verbose or any(level in wanted for level in ("info", "debug", "trace"))
    output.log_to_stderr("vsock-proxy", verbose=verbose)
    vsock_proxy.run(config, _say)


def _say(routes: list[Route]) -> None:
    for route in routes:
        output.say(f"enclaves reach {route.host}:{route.port} on port {route.local_port}")


def _route(arguments: argparse.Namespace) -> Route | None:
    from alcove.proxy.allowlist import Route  # noqa: PLC0415 - see above

    if arguments.local_port is None:
        return None
    local = _number(arguments.local_port, _MAX_LOCAL, "Local port is not valid")
    return Route(local, arguments.remote_addr, _number(arguments.remote_port, 0xFFFF, "Remote port is not valid"))


def _limit(text: str | None) -> int | None:
    if text is None:
        return None
    number = _number(text, _MAX_WORKERS, "Number of workers is not valid", least=0)
    if number == 0:
        raise UsageError("Number of workers must not be 0")
    return number


def _number(text: str, most: int, message: str, *, least: int = 1) -> int:
    if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
        raise UsageError(message)  # AWS's own words
    return int(text)
