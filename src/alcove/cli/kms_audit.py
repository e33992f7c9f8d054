"""``alcove kms audit``: whether the log of calls is whole."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from alcove.cli import output
from alcove.cli.kms_store import store_path
from alcove.cli.parsers import Commands, command
from alcove.errors import InputError, UsageError

_HEAD = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})", re.ASCII)


def add_commands(commands: Commands) -> None:
    """Add ``audit``."""
    group = commands.add_parser("audit", help="the log of every call").add_subparsers(metavar="COMMAND", required=True)
    parser = command(
        group,
        "verify",
        verify,
        "check that no record was changed, cut out, added or moved; a server may be running",
        "alcove kms audit verify --head 1200:5f3c…",
    )
    parser.add_argument("file", type=Path, nargs="?", help="default: the log beside the store")
    parser.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="N:HASH",
        help="what an earlier check printed: records up to there must still be in the log (again for more)",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--store", metavar="URL", help="sqlite:///PATH; default: in the state directory")


def verify(arguments: argparse.Namespace) -> None:
    """Check the chain of a log."""
    from alcove.kms.audit import inspect_log  # noqa: PLC0415 - other commands do not need the KMS

    path = arguments.file or store_path(arguments.store).with_suffix(".audit.jsonl")
    noted = dict(_noted(text) for text in arguments.head)
    try:
        found = inspect_log(_lines(path), noted)
    except ValueError as error:
        raise InputError(
            f"the audit log {path} is broken: {error}", hint="keep it as it is, and ask who could"
        ) from None
    if found.torn:
        output.warn("the last line is incomplete: the server was stopped while it wrote, and never answered that call")
    if arguments.json:
        output.result(found.to_json())
        return
    output.text(f"{found.records} records, unbroken; head {found.records}:{found.head}")


def _noted(text: str) -> tuple[int, str]:
    match = _HEAD.fullmatch(text)
    if match is None:
        raise UsageError(f"--head `{text}` is no NUMBER:HASH", hint="use what `alcove kms audit verify` printed")
    return int(match[1]), match[2]


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a log, the longest of which is bounded."""
    from alcove.kms.audit import MAX_LINE  # noqa: PLC0415 - other commands do not need the KMS

    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE + 1):
                yield line
    except FileNotFoundError:
        raise UsageError(f"there is no file `{path}`") from None
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}") from error
