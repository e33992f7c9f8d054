"""The audit log: one JSON line a call, on disk before the answer, each chained to the one before (kms.md §24)."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import orjson

from alcove.errors import MachineError, UsageError

GENESIS: Final = "0" * 64
MAX_LINE: Final = 1 << 20


class AuditLog:
    """The only writer of one file.

    Raises:
        UsageError: Another process writes it, or its last record cannot be read.
        MachineError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []
        self._broken = False
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise MachineError(f"cannot open the audit log {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._durable = self._sequence, self._previous = self._resume()
        except BlockingIOError:
            os.close(self._file)
            raise UsageError(f"the audit log {path} is in use", hint="is another KMS running?") from None
        except ValueError:
            os.close(self._file)
            raise UsageError(f"the last record of the audit log {path} is damaged", hint="move the file away") from None

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the last record that is on disk."""
        return self._durable

    @property
    def broken(self) -> bool:
        """Whether it takes no more records."""
        return self._broken

    def append(self, record: Mapping[str, Any]) -> None:
        """Takes one record into the chain; it is durable after the next `commit`.

        Raises:
            OSError: The log ends in half a record, which could not be taken back.
        """
        if self._broken:
            raise OSError(errno.EIO, "the audit log ends in half a record")
        line = chained(record, self._sequence + 1, self._previous)
        self._sequence, self._previous = self._sequence + 1, digest(line)
        self._waiting.append(line)

    def commit(self) -> None:
        """Writes every record that was taken durably, all in one go.

        Raises:
            OSError: They are not on disk, and the chain goes on without them; their calls must fail.
        """
        if not self._waiting:
            return
        lines, self._waiting = self._waiting, []
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            _write_all(self._file, b"".join(lines))
            os.fdatasync(self._file)
        except OSError:
            self._sequence, self._previous = self._durable
            self._broken = True
            os.ftruncate(self._file, end)  # no half record in front of the next one
            self._broken = False
            raise
        self._durable = self._sequence, self._previous

    def close(self) -> None:
        """Makes what was taken durable, and lets go of the file."""
        try:
            self.commit()
        finally:
            os.close(self._file)

    def _resume(self) -> tuple[int, str]:
        """Number and hash of the last record. A torn last line was never answered for, so it is cut off."""
        size = os.fstat(self._file).st_size
        start = max(0, size - 2 * MAX_LINE)
        tail = os.pread(self._file, size - start, start)
        whole, _, torn = tail.rpartition(b"\n")
        if torn:
            os.ftruncate(self._file, size - len(torn))
        if not whole:
            return 0, GENESIS
        last = whole.rpartition(b"\n")[2] + b"\n"
        return int(json.loads(last)["chain"]["sequence"]), digest(last)


def _write_all(file: int, line: bytes) -> None:
    """A full disk takes a part first and refuses the rest."""
    while line:
        line = line[os.write(file, line) :]


def chained(record: Mapping[str, Any], sequence: int, previous: str) -> bytes:
    """The line of a record: the record, its number, and the SHA-256 of the line before."""
    full = {**record, "chain": {"sequence": sequence, "previous": previous}}
    return orjson.dumps(full) + b"\n"


def digest(line: bytes) -> str:
    """What the next record says of a line."""
    return hashlib.sha256(line).hexdigest()


@dataclass(frozen=True, slots=True)
class Unbroken:
    """A log whose chain holds.

    Attributes:
        records: How many it has.
        head: SHA-256 of the last one. Noted elsewhere, it shows later that nothing before it was cut off or replaced.
        torn: Whether an incomplete line follows, of a call that was never answered.
    """

    records: int
    head: str
    torn: bool

    def to_json(self) -> dict[str, object]:
        """The object that the command prints."""
        return {"Records": self.records, "Head": f"{self.records}:{self.head}", "Torn": self.torn}


def inspect_log(lines: Iterable[bytes], noted: Mapping[int, str] = MappingProxyType({})) -> Unbroken:
    """What a log is, once every record follows the one before it.

    Args:
        lines: With their ends.
        noted: Hashes that records had, by their numbers.

    Raises:
        ValueError: A line was changed, cut out, added or moved, or a noted record is not there; the message names the
            first one.
    """
    previous, count, torn, waiting = GENESIS, 0, False, dict(noted)
    for line in lines:
        if torn or len(line) > MAX_LINE:
            raise ValueError(f"record {count + 1} cannot be read")
        if not line.endswith(b"\n"):
            torn = True
            continue
        count += 1
        if _link(line, count) != {"sequence": count, "previous": previous}:
            raise ValueError(f"record {count} does not follow the one before it")
        previous = digest(line)
        if waiting.pop(count, previous) != previous:
            raise ValueError(f"record {count} is not the one that was noted")
    if waiting:
        raise ValueError(f"record {min(waiting)} is missing: the log ends with record {count}")
    return Unbroken(count, previous, torn)


def _link(line: bytes, number: int) -> object:
    try:
        return json.loads(line)["chain"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"record {number} cannot be read") from None
