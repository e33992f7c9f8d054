"""``alcove attest``: the command line of what verifies, shows, measures and requests attestation documents.

The commands themselves are imported when they run: cryptography takes longer to import than most other commands run.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from alcove.cli.parsers import Commands, command, command_group


def add_commands(commands: Commands) -> None:
    """Add ``attest`` and its sub-commands."""
    inner = command_group(commands, "attest", "attestation documents")
    _add_verify(inner)
    parser = command(
        inner,
        "show",
        _later("attest_check", "show"),
        "show what a document says, without checking it",
        "alcove attest show document.cbor --eif app.eif",
    )
    parser.add_argument("file", metavar="FILE", help="the document, - for standard input")
    parser.add_argument("--eif", type=Path, metavar="FILE", help="say whether the registers are those of this image")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser = command(
        inner,
        "measure",
        _later("attest_check", "measure"),
        "print the policy that pins an image",
        "alcove attest measure app.eif > policy.json",
    )
    parser.add_argument("eif", type=Path, metavar="EIF", help="the image")
    parser = command(
        inner,
        "request",
        _later("attest_request", "request"),
        "ask the security module for a document (in an enclave)",
        "alcove attest request --nonce 5c0f2b --user-data @claims.json --output document.cbor",
    )
    parser.add_argument("--nonce", metavar="HEX", help="the verifier's challenge")
    parser.add_argument("--user-data", metavar="TEXT", help="text, or @FILE for the bytes of a file")
    parser.add_argument("--public-key", type=Path, metavar="FILE", help="a public key, PEM or DER")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write it; default: standard output")


def _add_verify(group: Commands) -> None:
    parser = command(
        group,
        "verify",
        _later("attest_check", "verify"),
        "check a document, step by step; exit status: 0 valid, 3 not valid, 4 valid but the policy is not met",
        "alcove attest verify document.cbor --root aws --policy policy.json --nonce 5c0f2b",
    )
    parser.add_argument("file", metavar="FILE", help="the document, - for standard input")
    parser.add_argument(
        "--root",
        action="append",
        metavar="ROOT",
        help="aws, a PEM file or sha256:HEX (again for more); default: this machine's own",
    )
    parser.add_argument("--at", default="now", metavar="TIME", help="now, document, or an RFC 3339 time")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="JSON or YAML such as {PCR0: hex}")
    parser.add_argument("--nonce", metavar="HEX", help="the challenge that the document must carry")
    parser.add_argument("--max-age", type=_seconds, metavar="SECONDS", help="refuse a document that is older than this")
    parser.add_argument("--crl", action="append", type=Path, metavar="FILE", help="a revocation list (again for more)")
    parser.add_argument("--allow-debug", action="store_true", help="accept zero PCRs of an enclave in debug mode")
    parser.add_argument("--strict", action="store_true", help="allow user data and nonce no more than 512 bytes")
    parser.add_argument("--json", action="store_true", help="for programs")


def _seconds(text: str) -> timedelta:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"`{text}` is no number of seconds")
    return timedelta(seconds=int(text))


def _later(module: str, name: str) -> Any:
    """A handler that imports its module when it is called."""

    def handler(arguments: argparse.Namespace) -> int | None:
        status: int | None = getattr(import_module(f"alcove.cli.{module}"), name)(arguments)
        return status

    return handler
