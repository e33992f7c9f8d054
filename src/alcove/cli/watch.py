"""Alcove's own commands to look at enclaves: ``logs`` and ``top``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from alcove.cli import lifeline, output
from alcove.cli.parsers import Commands, command
from alcove.enclave import control, ended, lifecycle, registry
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.errors import MachineError, UsageError

_MIB: Final = 1024 * 1024
_COLUMNS: Final = ("NAME", "CID", "CPU", "MEMORY", "UPTIME", "OPEN", "CONNECTIONS", "FROM ENCLAVE", "TO ENCLAVE", "NSM")


def add_commands(commands: Commands) -> None:
    """Add ``logs`` and ``top``."""
    parser = command(
        commands,
        "logs",
        logs,
        "show the console of a debug enclave, running or ended; or the log of one whose image shows it",
        "alcove logs app",
    )
    parser.add_argument("enclave", metavar="ENCLAVE", help="name or id; of several ended with one name, the last")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the enclave ends")
    parser = command(commands, "top", top, "watch the running enclaves", "alcove top --once")
    parser.add_argument("--interval", metavar="SECONDS", type=_seconds, default=2.0, help="between two looks; 2")
    parser.add_argument("--once", action="store_true", help="print one table and end")
    parser.add_argument("--json", action="store_true", help="print the counters of one moment")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("from 0.1 to 3600")
    return value


def logs(arguments: argparse.Namespace) -> None:
    """``logs``."""
    paths, wanted = Paths.from_environment(), arguments.enclave
    running = [record for record in registry.live(paths) if wanted in (record.enclave_id, record.name)]
    if running and _live_log(paths, running[-1], follow=arguments.follow):
        return
    entries = [entry for entry in ended.load(paths) if wanted in (entry["EnclaveID"], entry["EnclaveName"])]
    if not entries:
        hint = "`describe-enclaves --all` lists those that run and those that have ended"
        raise UsageError(f"no enclave is called `{wanted}`", code="E58", hint=hint)
    text = ended.console_of(paths, entries[-1]["EnclaveID"])
    if text is None:
        raise _no_console()
    output.data(text)
    output.say(f"ended {entries[-1]['EndedAt']}: {entries[-1]['Reason']}")


def _live_log(paths: Paths, record: Record, *, follow: bool) -> bool:
    """Show a running enclave's console, or what its image lets be seen; False when it has ended meanwhile."""
    if not record.debug_mode and (chunks := lifeline.log(paths, record, follow=follow)) is not None:
        for chunk in chunks:
            output.data(chunk)
        return True
    if follow:
        for chunk in lifecycle.console(paths, record):
            output.data(chunk)
        return True
    try:
        text = control.ask(paths.enclave(record.enclave_id).control, "console")["Console"]
    except control.NobodyListensError:
        if not lifecycle.ends(paths, record):
            raise
        return False
    if text is None:
        raise _no_console()
    output.data(text.encode())
    return True


def _no_console() -> MachineError:
    hint = "it takes `--debug-mode`, or an image that shows it: `build-enclave --show-log`; only its owner may read it"
    return MachineError("there is no console of this enclave", code="E44", hint=hint)


def top(arguments: argparse.Namespace) -> None:
    """``top``."""
    paths = Paths.from_environment()
    before = sample(paths)
    if arguments.json:
        output.result(list(before.values()))
        return
    time.sleep(min(arguments.interval, 0.5))
    if arguments.once or not sys.stdout.isatty():
        after = sample(paths)
        for line in _aligned([_COLUMNS, *rows(before, after)]):
            output.text(line)
        return

    def frames() -> list[tuple[str, ...]]:
        nonlocal before
        after = sample(paths)
        shown, before = rows(before, after), after
        return shown

    output.live(_COLUMNS, frames, arguments.interval)


def sample(paths: Paths, clock: Callable[[], float] = time.monotonic) -> dict[str, dict[str, Any]]:
    """The counters of every running enclave by its id, and when they were read."""
    found = {}
    for record in registry.live(paths):
        try:
            stats = control.ask(paths.enclave(record.enclave_id).control, "stats")
        except MachineError:  # ending
            continue
        own = {"EnclaveName": record.name, "EnclaveID": record.enclave_id, "EnclaveCID": record.cid}
        found[record.enclave_id] = own | stats | {"At": clock()}
    return found


def rows(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table's rows: rates between two samples, totals of the later one."""
    return [_row(before.get(key), stats) for key, stats in after.items()]


def _row(before: dict[str, Any] | None, after: dict[str, Any]) -> tuple[str, ...]:
    seconds = after["At"] - before["At"] if before else 0.0

    def rate(name: str) -> float:
        return (after[name] - before[name]) / seconds if before and seconds > 0 else 0.0

    return (
        after["EnclaveName"],
        str(after["EnclaveCID"]),
        f"{100 * rate('CPUSeconds'):.0f} %",
        f"{after['ResidentBytes'] / _MIB:.0f} MiB",
        _uptime(after["StartedAt"]),
        str(after["OpenConnections"]),
        str(after["Connections"]),
        f"{rate('BytesFromEnclave') / _MIB:.1f} MiB/s",
        f"{rate('BytesToEnclave') / _MIB:.1f} MiB/s",
        str(after["NSMRequests"]),
    )


def _uptime(started: str | None) -> str:
    if started is None:
        return "starting"
    return str(datetime.now(UTC).replace(microsecond=0) - datetime.fromisoformat(started))


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
