"""``alcove kms audit``: whether the log of calls is whole."""

from __future__ import annotations

import argparse
import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alcove.cli import output
from alcove.cli.kms_store import add_store_flags, opened, store_path
from alcove.cli.parsers import Commands, command, command_group
from alcove.errors import InputError, UsageError

if TYPE_CHECKING:
    from alcove.kms.audit import Unbroken

_HEAD = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})", re.ASCII)


def add_commands(commands: Commands) -> None:
    """Add ``audit``."""
    inner = command_group(commands, "audit", "the log of every call")
    parser = command(
        inner,
        "verify",
        verify,
        "check that no record was changed, cut out, added or moved; a server may be running",
        "alcove kms audit verify --head 1200:5f3c…",
    )
    parser.add_argument(
        "file", type=Path, nargs="?", help="a log by itself; default: that of the store, with what the store has of it"
    )
    parser.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="N:HASH",
        help="what an earlier check printed: records up to there must still be in the log (again for more)",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    add_store_flags(parser)


def verify(arguments: argparse.Namespace) -> None:
    """Check the chain of a log, or of each worker's."""
    noted = dict(_noted(text) for text in arguments.head)
    known = {} if arguments.file else _remembered(arguments)
    paths = [arguments.file] if arguments.file else sorted(known)
    if noted and len(paths) > 1:
        raise UsageError("--head is of one log, and there are several", hint=f"name it, such as {paths[0]}")
    found = [_verified(path, noted | known.get(path, {})) for path in paths]
    if arguments.json:
        logs = [one.to_json() | {"File": str(path)} for one, path in zip(found, paths, strict=True)]
        output.result(logs[0] if len(logs) == 1 else {"Logs": logs})
        return
    for path, one in zip(paths, found, strict=True):
        name = f"{path}: " if len(paths) > 1 else ""
        output.text(f"{name}{one.records} records, unbroken; head {one.records}:{one.head}")


def _remembered(arguments: argparse.Namespace) -> dict[Path, dict[int, str]]:
    """The logs beside the store and those that it knows of; of each, the record that the store has, by its number."""
    from alcove.kms.heads import known_logs, log_name, noted_head  # noqa: PLC0415 - other commands do not need the KMS

    path = store_path(arguments.store).with_suffix(".audit.jsonl")
    workers = f"{glob.escape(path.stem)}.[0-9]*{path.suffix}"  # a server's log, and those of its other workers
    with opened(arguments) as store:
        known = [log for log in known_logs(store) if log == path or (log.parent == path.parent and log.match(workers))]
        try:
            heads = {log: noted_head(store, log_name(log)) for log in {path, *path.parent.glob(workers), *known}}
        except ValueError as error:
            raise InputError(f"{error}: it was not this service that wrote it") from None
    gone = sorted(log for log, head in heads.items() if head and head[0] and not log.exists())
    if gone:
        records = (heads[gone[0]] or (0, ""))[0]
        raise InputError(
            f"the audit log {gone[0]} is missing: the store knows of {records} records in it",
            hint="bring it back; whoever took it away took the record of those calls away",
        )
    return {log: {head[0]: head[1]} if head and head[0] else {} for log, head in heads.items()}


def _verified(path: Path, noted: dict[int, str]) -> Unbroken:
    from alcove.kms.audit import inspect_log  # noqa: PLC0415 - other commands do not need the KMS

    try:
        found = inspect_log(_lines(path), noted)
    except ValueError as error:
        raise InputError(
            f"the audit log {path} is broken: {error}", hint="keep it as it is, and ask who could"
        ) from None
    if found.torn:
        output.warn("the last line is incomplete: the server was stopped while it wrote, and never answered that call")
    return found


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
