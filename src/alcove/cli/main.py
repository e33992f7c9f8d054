"""The programs: ``alcove``, ``nitro-cli`` (the same program under AWS's name) and ``vsock-proxy``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from alcove import __version__
from alcove.cli import attest, output
from alcove.errors import AlcoveError

Handler = Callable[[argparse.Namespace], int | None]


def alcove() -> NoReturn:
    """The program ``alcove``: every command of nitro-cli, and Alcove's own."""
    _run(alcove_parser)


def alcove_parser() -> argparse.ArgumentParser:
    """The command line of ``alcove``."""
    parser = argparse.ArgumentParser(
        prog="alcove", description="enclaves on any Linux machine, with AWS Nitro's formats"
    )
    parser.add_argument("--version", action="version", version=f"alcove {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    attest.add_commands(commands)
    try:
        from alcove.cli import completion, credentials, egress, lifeline, native, nitro, scaffold, vsock, watch  # noqa: PLC0415 - see below
    except (ImportError, AttributeError) as missing:
        # The package alone verifies documents on any system; the rest takes Linux and the packages of `alcove[host]`.
        parser.usage = f"%(prog)s attest …\n\nall else takes Linux and the packages of the extra `host` ({missing})"
    else:
        native.add_commands(commands)
        nitro.add_commands(commands)
        watch.add_commands(commands)
        vsock.add_commands(commands)
        scaffold.add_commands(commands)
        egress.add_commands(commands)
        lifeline.add_commands(commands)
        credentials.add_commands(commands)
        programs = {"alcove": alcove_parser, "nitro-cli": nitro_parser, "vsock-proxy": proxy_parser}
        programs["alcove-enclave"] = _inside_parser
        completion.add_commands(commands, programs)
    return parser


def nitro_cli() -> NoReturn:
    """The program ``nitro-cli``."""
    _run(nitro_parser)


def nitro_parser() -> argparse.ArgumentParser:
    """The command line of ``nitro-cli``."""
    from alcove.cli import codes, nitro  # noqa: PLC0415 - it needs Linux

    parser = argparse.ArgumentParser(prog="nitro-cli", description="CLI for enclave lifetime management")
    parser.add_argument("-V", "--version", action="version", version=f"Nitro CLI {codes.NITRO_CLI_VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    nitro.add_commands(commands)
    return parser


def _inside_parser() -> argparse.ArgumentParser:
    from alcove.cli.inside import enclave_parser  # noqa: PLC0415 - a program of its own

    return enclave_parser()


def vsock_proxy() -> NoReturn:
    """The program ``vsock-proxy``."""
    _run(proxy_parser, output.rust_error)


def proxy_parser() -> argparse.ArgumentParser:
    """The command line of ``vsock-proxy``."""
    from alcove.cli import proxy  # noqa: PLC0415 - it needs Linux

    parser = argparse.ArgumentParser(prog="vsock-proxy", description="let enclaves reach one host and port")
    proxy.add_arguments(parser)
    return parser


def _terminated(*_: object) -> NoReturn:
    # an exception, so that temporary files go the way they go on Ctrl-C
    sys.exit(128 + signal.SIGTERM)


def _run(
    make_parser: Callable[[], argparse.ArgumentParser], report: Callable[[str, AlcoveError], None] = output.error
) -> NoReturn:
    signal.signal(signal.SIGTERM, _terminated)
    program = "alcove"
    try:
        parser = make_parser()  # loads most of the program: Ctrl-C may come here too
        program = parser.prog
        arguments = parser.parse_args()
        handler: Handler = arguments.handler
        status = handler(arguments) or 0
    except AlcoveError as problem:
        if os.environ.get("ALCOVE_DEBUG"):
            raise
        report(program, problem)
        if os.environ.get("BACKTRACE") == "1":
            action = " ".join(sys.argv[1:2]).replace("-", " ").title()
            output.backtrace(action, __version__, problem)
        status = 1 if report is output.rust_error else problem.exit_status
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        # the reader of our output has gone; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 141
    except OSError as problem:
        if os.environ.get("ALCOVE_DEBUG") or problem.filename is None:
            raise
        output.error(program, AlcoveError(f"cannot use `{problem.filename}`: {problem.strerror}", code="E19"))
        status = 19
    sys.exit(status)
