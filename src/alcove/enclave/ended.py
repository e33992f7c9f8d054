"""Enclaves that have ended: how, with which status, and what their console said in debug mode, or their log said last.

The supervisor writes one file when it ends; for a supervisor that was killed, whoever finds its directory writes it.
The newest are kept. They tell a person what happened and decide nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.enclave.report import Kind, Report

KEPT: Final = 64  # enclaves; a console is at most 1 MiB (console.KEPT_BYTES)


class Cause(StrEnum):
    """Why an enclave ended."""

    EXITED = "exited"  # the application ended, with an exit status
    SIGNALLED = "signalled"  # a signal ended the application
    OUT_OF_MEMORY = "out of memory"  # the guest's kernel ended the application for want of memory
    INIT_FAILED = "init failed"  # the application was never started
    PANIC = "panic"  # the guest's kernel said so on its console (debug mode)
    RESET = "reset"  # the guest stopped without a word from its init: a panic, or a reboot or power-off from inside
    TERMINATED = "terminated"  # terminate-enclave, or SIGTERM to the supervisor
    KILLED = "killed"  # a signal ended QEMU, or its jail
    SUPERVISOR_KILLED = "supervisor killed"
    MACHINE = "machine failed"  # QEMU or a device gave up


@dataclass(frozen=True, slots=True)
class End:
    """The end of an enclave: cause, a sentence for people, and the application's exit status where there is one."""

    cause: Cause
    reason: str
    exit_status: int | None = None


def end_of(status: int, complaint: str, report: Report | None, console: bytes) -> End:
    """What ended a machine that stopped by itself.

    Args:
        status: Of the jail's process, as `subprocess` gives it: a signal is negative, one inside the jail 128 and more.
        complaint: QEMU's last line on standard error.
        report: What the guest's init reported, if it did.
        console: The console's last bytes; empty outside debug mode.
    """
    signal_number = -status if status < 0 else status - 128 if status > 128 else 0
    if signal_number:
        return End(Cause.KILLED, f"signal {signal_number} ended QEMU")
    if status:
        return End(Cause.MACHINE, complaint or f"QEMU ended with status {status}")
    if report is not None:
        return _reported(report)
    panic = _panic_line(console)
    if panic:
        return End(Cause.PANIC, panic)
    return End(Cause.RESET, "the guest stopped without a report from its init: a panic, a reboot or a power-off")


def _reported(report: Report) -> End:
    match report.kind:
        case Kind.EXIT:
            return End(Cause.EXITED, f"the application ended with status {report.number}", report.number)
        case Kind.SIGNAL:
            return End(Cause.SIGNALLED, f"signal {report.number} ended the application", 128 + report.number)
        case Kind.OOM:
            return End(Cause.OUT_OF_MEMORY, "the enclave ran out of memory", 128 + report.number)
        case Kind.INIT:
            return End(Cause.INIT_FAILED, f"the enclave's init failed: {report.text}")


def _panic_line(console: bytes) -> str | None:
    mark = b"Kernel panic - not syncing"
    at = console.rfind(mark)
    return console[at:].split(b"\n", 1)[0].decode(errors="replace").strip() if at >= 0 else None


def save(paths: Paths, record: Record, end: End, started: datetime | None, console: bytes | None) -> None:
    """Keep the end of an enclave, and forget the oldest; a full disk loses the note and nothing else."""
    note = asdict(record) | {
        "started": started.isoformat(timespec="seconds") if started else None,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "cause": end.cause.value,
        "reason": end.reason,
        "exit_status": end.exit_status,
    }
    with contextlib.suppress(OSError):
        paths.ended.mkdir(mode=0o755, exist_ok=True)
        if console is not None:
            _write(_console_path(paths, record.enclave_id), console, 0o600)
        _write(paths.ended / f"{record.enclave_id}.json", json.dumps(note).encode(), 0o644)
        for old in _notes(paths)[:-KEPT]:
            old.with_suffix(".console").unlink(missing_ok=True)
            old.unlink(missing_ok=True)


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _notes(paths: Paths) -> list[Path]:
    found = []
    for path in paths.ended.glob("i-*.json"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def load(paths: Paths) -> list[dict[str, Any]]:
    """The ended enclaves, oldest first, as `describe-enclaves --all` prints them."""
    entries = []
    for path in _notes(paths):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            entries.append(_entry(json.loads(path.read_bytes())))
    return entries


def _entry(note: dict[str, Any]) -> dict[str, Any]:
    return {
        "EnclaveName": note["name"],
        "EnclaveID": note["enclave_id"],
        "ProcessID": note["process_id"],
        "EnclaveCID": note["cid"],
        "NumberOfCPUs": len(note["cpu_ids"]),
        "CPUIDs": note["cpu_ids"],
        "MemoryMiB": note["memory_mib"],
        "State": "ENDED",
        "Flags": "DEBUG_MODE" if note["debug_mode"] else "NONE",
        "Cause": note["cause"],
        "Reason": note["reason"],
        "ExitStatus": note["exit_status"],
        "StartedAt": note["started"],
        "EndedAt": note["ended"],
    }


def console_of(paths: Paths, enclave_id: str) -> bytes | None:
    """The last of an ended enclave's console, or of a log that is shown; None without, or when it is another's."""
    try:
        return _console_path(paths, enclave_id).read_bytes()
    except OSError:
        return None


def _console_path(paths: Paths, enclave_id: str) -> Path:
    return paths.ended / f"{enclave_id}.console"
