"""The program ``alcove-enclave``: what runs beside an application in its enclave, here and in AWS's.

Each command is a module of its own, imported only when it is asked for: under emulation every import is felt. Such a
module has `add_arguments(parser)` and `run(arguments)`, which returns an exit status or None.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Final, NoReturn

from alcove import __version__
from alcove.cli import output
from alcove.errors import AlcoveError

COMMANDS: Final = {
    "run": ("alcove.cli.inside_run", "run an application, with what it needs beside it"),
    "egress": ("alcove.cli.inside_egress", "an HTTP proxy on the enclave's loopback, whose list is measured"),
    "ingress": ("alcove.cli.inside_ingress", "lead vsock ports to TCP servers on the enclave's loopback"),
    "credentials": ("alcove.cli.inside_credentials", "the parent's credentials, for unmodified SDKs"),
    "kms-proxy": ("alcove.cli.inside_kms_proxy", "KMS on loopback for any AWS SDK, attested"),
    "attestation-server": ("alcove.cli.inside_attestation", "attestation documents by HTTP on loopback"),
    "kmstool": ("alcove.cli.inside_kmstool", "kmstool-enclave's protocol on vsock port 3000"),
}


def main() -> NoReturn:
    """Run the command that is asked for."""
    arguments = sys.argv[1:]
    parser = enclave_parser(arguments[0] if arguments else None)
    parsed = parser.parse_args(arguments)
    output.log_to_stderr(parser.prog, verbose=parsed.verbose)
    try:
        status = parsed.handler(parsed) or 0
    except AlcoveError as problem:
        if os.environ.get("ALCOVE_DEBUG"):
            raise
        output.error(parser.prog, problem)
        status = problem.exit_status
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def enclave_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """The command line; with `wanted`, only that command has its arguments."""
    parser = argparse.ArgumentParser(prog="alcove-enclave", description="what runs beside an application in an enclave")
    parser.add_argument("--version", action="version", version=f"alcove {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("-v", "--verbose", action="store_true", help="a line for every connection")
        if wanted in (None, name):
            loaded = importlib.import_module(module)
            loaded.add_arguments(command)
            command.set_defaults(handler=loaded.run)
    return parser
