"""A KeyStore in one SQLite file: WAL, synchronous FULL, deleted bytes overwritten (kms.md §25, §27)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from alcove.errors import MachineError, UsageError
from alcove.kms.rootplace import RootPlace
from alcove.kms.table_keys import SCHEMA as KEY_SCHEMA
from alcove.kms.table_keys import KeyTables
from alcove.kms.table_names import SCHEMA as NAME_SCHEMA
from alcove.kms.table_names import NameTables
from alcove.kms.table_root import SCHEMA as ROOT_SCHEMA
from alcove.kms.table_root import RootTables
from alcove.kms.table_users import SCHEMA as USER_SCHEMA

TIMEOUT: Final = 10.0  # seconds for which one process waits for another that writes
_SCHEMA: Final = ROOT_SCHEMA + USER_SCHEMA + KEY_SCHEMA + NAME_SCHEMA


def open_store(
    url: str, root_key: Path | RootPlace, *, account: str | None = None, exclusive: bool = False
) -> SqliteStore:
    """Opens a store, or makes it with its root key when there is none.

    Args:
        url: ``sqlite:///relative``, ``sqlite:////absolute`` or a bare path.
        root_key: Where the root key is.
        account: Account id for a new store; one that exists keeps its own.
        exclusive: Whether nobody else may have it open.

    Raises:
        UsageError: Wrong URL, root key missing or wrong, another account.
        MachineError: The database cannot be used.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "sqlite":
        raise UsageError(f"stores of kind {scheme!r} are not known", hint="use sqlite:///path")
    path = Path(rest.removeprefix("/") if separator else url)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A file that is there is not opened here: closing it would end the locks that SQLite has on it in this process,
        # and another process would then take the log away that this one goes on writing.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        place = root_key if isinstance(root_key, RootPlace) else RootPlace.of(root_key)
        return SqliteStore(path, place, account, exclusive=exclusive)
    except FileExistsError as error:
        raise MachineError(f"cannot open the store {path}: {error.filename} is not a directory") from error
    except (OSError, sqlite3.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise MachineError(f"cannot open the store {path}: {reason}") from error


class SqliteStore(KeyTables, NameTables, RootTables):
    """One connection to one file; use it from one thread at a time. Made by `open_store`."""

    _conflict = sqlite3.IntegrityError
    shared = False

    def __init__(self, path: Path, place: RootPlace, account: str | None, *, exclusive: bool = False) -> None:
        super().__init__()
        self._lock = _lock(path, exclusive=exclusive)
        self._connection = self._database = sqlite3.connect(
            path, timeout=TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            pragmas = ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON", "temp_store=2")
            for pragma in pragmas:
                _patiently(self._connection, f"PRAGMA {pragma}")
            with self.transaction():
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._database.execute(statement)
            self._identify(place, account)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that happens within happens or does not; the outermost of nested ones decides."""
        if self._depth == 0:
            self._database.execute("BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
            if self._depth == 1:
                self._database.execute("COMMIT")
        except BaseException:
            if self._depth == 1:
                self._erased = False
                if self._connection.in_transaction:  # a disk that is full may have ended it already
                    self._database.execute("ROLLBACK")
            raise
        finally:
            self._depth -= 1
            self._looked = False
        if self._depth == 0 and self._erased:  # out of the log too, where its page would stay until a checkpoint
            self._erased = False
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _version(self) -> object:
        """Our own changes, and a number that SQLite gives another value when somebody else has committed."""
        (others,) = self._connection.execute("PRAGMA data_version").fetchone()
        return self._connection.total_changes, others

    def sweep(self) -> None:
        """Everything anew without free pages, and the log emptied."""
        self._database.execute("VACUUM")
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Lets go of the database."""
        self._connection.close()
        os.close(self._lock)


def _patiently(connection: sqlite3.Connection, statement: str) -> None:
    """Runs a statement for which SQLite does not wait itself: the change to WAL, when somebody else makes it too."""
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _lock(path: Path, *, exclusive: bool) -> int:
    """Everyone who has the store open shares a lock, so that its root key changes when nobody has."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"the store {path} is in use", hint="end `alcove kms serve` first") from None
    return descriptor


def read_meta(path: Path) -> dict[str, str]:
    """What a store says of itself without its root key: account, schema, fingerprint; empty when it is no store."""
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT name, value FROM meta WHERE name<>'verifier'").fetchall()
    except sqlite3.DatabaseError:
        return {}
    finally:
        database.close()
    return {name: bytes(value).decode(errors="replace") for name, value in rows}
