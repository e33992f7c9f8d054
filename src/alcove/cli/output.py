"""The only place that prints.

The voice: lower case, no full stop; results on standard output and nothing else there; everything for people
on standard error; an error is one line with AWS's ``[ Exx ]`` in front where there is a code, and a hint on a
line of its own. A traceback appears only with ``ALCOVE_DEBUG=1``; nitro-cli's own form of it with ``BACKTRACE=1``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from alcove.errors import AlcoveError, MachineError


def result(value: Any) -> None:
    """Print a result as AWS does: JSON, two spaces."""
    line = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold only escaped
        line = json.dumps(value, indent=2)
    text(line)


def results(values: Iterable[Any]) -> None:
    """Print many results as they come: a JSON array, an element a line."""
    before = "["
    for value in values:
        with _standard_output() as out:
            out.write(f"{before}\n  {json.dumps(value)}")
        before = ","
    text("[]" if before == "[" else "\n]")


def text(line: str) -> None:
    """Print a result that is text."""
    with _standard_output() as out:
        out.write(line + "\n")
        out.flush()


def data(chunk: bytes) -> None:
    """Print bytes as they are."""
    with _standard_output() as out:
        out.buffer.write(chunk)
        out.buffer.flush()


@contextlib.contextmanager
def _standard_output() -> Iterator[TextIO]:
    """Standard output; MachineError when it is closed or full, and whoever reads it must not take a part for all."""
    if sys.stdout is None:
        raise MachineError("standard output is closed")
    try:
        yield sys.stdout
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer fails again at the end
        raise MachineError(f"cannot write to standard output: {error.strerror}") from None


def say(line: str) -> None:
    """Tell a person something."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def warn(line: str) -> None:
    """Tell a person about something that is not as it should be, and goes on."""
    say(f"warning: {line}")


def log_to_stderr(program: str, *, verbose: bool = False) -> None:
    """Show what a service logs: what went wrong, and with `verbose` a line for every connection."""
    import logging  # noqa: PLC0415 - few commands log, and under emulation every import is felt

    logging.basicConfig(format=f"{program}: %(message)s", level=logging.INFO if verbose else logging.WARNING)


def error(program: str, problem: AlcoveError) -> None:
    """Report an error in one line, and its hint in another."""
    prefix = f"[ {problem.code} ] " if problem.code else f"{program}: error: "
    say(prefix + problem.message)
    if problem.hint:
        say(f"hint: {problem.hint}")


def rust_error(_program: str, problem: AlcoveError) -> None:
    """Report an error as AWS's vsock-proxy does, which scripts look for (cli.md §6), and its hint in another line."""
    say(f"Error: {json.dumps(problem.message, ensure_ascii=False)}")
    if problem.hint:
        say(f"hint: {problem.hint}")


def backtrace(action: str, version: str, problem: AlcoveError) -> None:
    """Where an error came from, as nitro-cli shows it under BACKTRACE=1 (cli.md §5.1): outermost first."""
    frames = traceback.extract_tb(problem.__traceback__)
    lines = ["", "Backtrace:", f"  Action: {action}", "  Subactions:"]
    lines += [f"    Failed to {frame.name.strip('_').replace('_', ' ')}" for frame in frames]
    if frames:
        lines += [f"  Root error file: {frames[-1].filename}", f"  Root error line: {frames[-1].lineno}"]
    say("\n".join([*lines, f"  Version: {version}"]))


def live(columns: Sequence[str], rows: Callable[[], Sequence[Sequence[str]]], seconds: float) -> None:
    """Show a table that is made anew every so many seconds, until Ctrl-C."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and few commands need it
    from rich.live import Live  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    def table() -> Table:
        made = Table(*columns, box=None)
        for row in rows():
            made.add_row(*row)
        return made

    with Live(table(), console=Console(), screen=True, auto_refresh=False) as shown:
        while True:
            time.sleep(seconds)
            shown.update(table(), refresh=True)


def bold(line: str) -> str:
    """Bold on a terminal, plain elsewhere."""
    return f"\033[1m{line}\033[0m" if sys.stdout.isatty() else line
