"""Copies of a store, taken while it is served, and stores made from them (kms.md §25, §27).

A backup is one SQLite file. What is wrapped in the store is wrapped in the backup: it holds no secret in clear, is
worth nothing without the root key, and says by its fingerprint which root key that is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from alcove.errors import InputError, MachineError, UsageError
from alcove.kms.sqlite_store import read_meta
from alcove.kms.table_root import SCHEMA_VERSION

_SIDES: Final = ("-wal", "-shm", "-journal")
PAGES: Final = 256  # copied at a time; writers get their turn in between


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself: account, the root key's fingerprint, when it was taken, how many keys."""

    account: str
    fingerprint: str
    taken: str
    keys: int

    def to_json(self) -> dict[str, object]:
        """The object that the command prints."""
        return {
            "Account": self.account,
            "RootKeyFingerprint": self.fingerprint,
            "Taken": self.taken,
            "Keys": self.keys,
        }


def back_up(store: Path, file: Path, now: datetime) -> Manifest:
    """Writes a consistent copy of a store, which may be in use, into a new file of mode 0600.

    Raises:
        UsageError: The file exists, or its directory or the store does not.
        MachineError: The copy cannot be made; nothing is left of it.
    """
    if not read_meta(store).get("account"):
        raise UsageError(f"{store} is not a store")
    if not file.parent.is_dir():
        # not made: it may be where a disk should be mounted, and the copy would be on the disk it is a copy of
        raise UsageError(f"there is no directory {file.parent}", hint="make it first, or mount what belongs there")
    taken = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    with _new_copy(store, file) as copy:
        copy.execute("INSERT OR REPLACE INTO meta VALUES ('backup', CAST(? AS BLOB))", (taken,))
    return inspect(file)


def inspect(file: Path) -> Manifest:
    """What a backup says of itself, after a check that it is whole.

    Raises:
        UsageError: There is no such file, or it cannot be read.
        InputError: It is not a backup, or damaged.
    """
    try:
        if not file.is_file():
            raise UsageError(f"there is no file {file}")
        file.open("rb").close()  # for a reason in words: SQLite has none
    except OSError as error:
        raise UsageError(f"cannot read `{file}`: {error.strerror}") from error
    meta = read_meta(file)
    if "backup" not in meta or meta.get("schema") != str(SCHEMA_VERSION):
        raise InputError(f"{file} is not a backup of a store", hint="make one with `alcove kms backup FILE`")
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            whole = database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            keys = int(database.execute("SELECT count(*) FROM keys").fetchone()[0])
    except sqlite3.DatabaseError:
        whole = False
    if not whole:
        raise InputError(f"the backup {file} is damaged")
    return Manifest(meta["account"], meta.get("fingerprint", ""), meta["backup"], keys)


def restore(file: Path, store: Path) -> Manifest:
    """Makes a store from a backup, where there is none.

    Raises:
        UsageError: There is a store already, or parts of one.
        InputError: The file is not a backup, or damaged.
    """
    manifest = inspect(file)
    there = [path for path in (store, *(store.with_name(store.name + side) for side in _SIDES)) if path.exists()]
    if there:
        raise UsageError(
            f"{there[0]} exists already", hint="a store is never overwritten: move it away, or use --store"
        )
    try:
        store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make {store.parent}: {error.strerror}") from error
    with _new_copy(file, store) as copy:
        copy.execute("DELETE FROM meta WHERE name='backup'")
    return manifest


@contextlib.contextmanager
def _new_copy(source: Path, target: Path) -> Iterator[sqlite3.Connection]:
    """A copy of a database, to be changed in the block; it appears as `target` when the block ends well."""
    if target.exists():
        raise _exists(target)
    waiting = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(waiting, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with contextlib.closing(_copied(source, waiting)) as copy:
                yield copy
            _sync(waiting)
            _put(waiting, target)
        finally:
            for side in ("", *_SIDES):
                waiting.with_name(waiting.name + side).unlink(missing_ok=True)
        _sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise MachineError(f"cannot copy {source} to {target}: {reason}") from error


def _put(waiting: Path, target: Path) -> None:
    try:
        os.link(waiting, target)  # unlike rename, it never replaces
    except FileExistsError:
        raise _exists(target) from None


def _exists(target: Path) -> UsageError:
    return UsageError(f"`{target}` exists already", hint="nothing is overwritten; choose another name")


def _copied(source: Path, target: Path) -> sqlite3.Connection:
    copy = sqlite3.connect(target, isolation_level=None)
    try:
        with contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.backup(copy, pages=PAGES)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, and no log beside it
        copy.execute("PRAGMA synchronous=FULL")
        copy.execute("PRAGMA secure_delete=ON")
    except BaseException:
        copy.close()
        raise
    return copy


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
