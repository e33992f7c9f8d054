"""A KeyStore in a PostgreSQL database, for many servers that share keys (kms.md §25, §27).

Nothing that a server remembers is older than `BOUND`: it asks the database for its version again before it answers from
memory what it last confirmed longer ago, and its own writes make it ask at once. What a server does not find is never
remembered, so a key made by one server is there for all of them at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

import psycopg

from alcove.errors import MachineError, UsageError
from alcove.kms.postgres_database import SCHEMA as NAMESPACE
from alcove.kms.postgres_database import PostgresDatabase
from alcove.kms.rootplace import RootPlace
from alcove.kms.table_keys import SCHEMA as KEY_SCHEMA
from alcove.kms.table_keys import KeyTables
from alcove.kms.table_names import SCHEMA as NAME_SCHEMA
from alcove.kms.table_names import NameTables
from alcove.kms.table_root import SCHEMA as ROOT_SCHEMA
from alcove.kms.table_root import RootTables
from alcove.kms.table_users import SCHEMA as USER_SCHEMA

BOUND: Final = 0.25  # seconds for which a policy, a key's state or a user can be remembered after it was changed
MAKING: Final = 0x616C636F7666  # the advisory lock of whoever makes the tables
_TYPES: Final = {
    " STRICT": "",
    " TEXT": ' TEXT COLLATE "C"',  # ordered by bytes, as in SQLite
    " REAL": " DOUBLE PRECISION",
    " BLOB": " BYTEA",
    " INTEGER": " BIGINT",
}
_OWN: Final = """
CREATE TABLE IF NOT EXISTS changes (version BIGINT NOT NULL);
INSERT INTO changes SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM changes);
ALTER TABLE access_keys ADD COLUMN IF NOT EXISTS rowid BIGINT GENERATED ALWAYS AS IDENTITY;
"""


def open_postgres(url: str, place: RootPlace, *, account: str | None = None, exclusive: bool = False) -> PostgresStore:
    """Opens a store, or makes it with its root key when there is none.

    Args:
        url: ``postgresql://…`` without a password.
        place: Where the root key is.
        account: Account id for a new store; one that exists keeps its own.
        exclusive: Whether nobody else may have it open.

    Raises:
        UsageError: Wrong URL, root key missing or wrong, another account, or in use.
        MachineError: The database cannot be used.
    """
    try:
        shown = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise UsageError(f"the store's URL cannot be read: {_line(error)}") from None
    if "password" in shown:
        hint = "everyone can see arguments: use PGPASSFILE, PGPASSWORD or a service file"
        raise UsageError("the store's URL has a password in it", hint=hint)
    try:
        return PostgresStore(url, place, account, exclusive=exclusive)
    except BlockingIOError:
        raise UsageError("the store is in use", hint="end every `alcove kms serve` of it first") from None
    except psycopg.Error as error:
        raise MachineError(f"cannot open the store: {_line(error)}") from error


class PostgresStore(KeyTables, NameTables, RootTables):
    """One connection; use it from one thread at a time. Made by `open_postgres`."""

    _conflict = psycopg.errors.UniqueViolation
    shared = True

    def __init__(self, url: str, place: RootPlace, account: str | None, *, exclusive: bool = False) -> None:
        super().__init__()
        self._connection = PostgresDatabase(url, exclusive=exclusive)
        self._database = self._connection
        self._confirmed = float("-inf")
        self._latest: object = None
        try:
            self._make()
            self._identify(place, account)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that happens within happens or does not; the outermost of nested ones decides."""
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        try:
            with self._connection.transaction():
                self._depth = 1
                yield
        except BaseException:
            self._erased = False
            raise
        finally:
            self._depth = 0
            self._looked = False
            self._confirmed = float("-inf")
        if self._erased:
            self._erased = False
            self.sweep()

    def close(self) -> None:
        """Lets go of the database."""
        self._connection.close()

    def _make(self) -> None:
        """Makes the tables; whoever comes at the same moment waits, for IF NOT EXISTS alone does not stop a race."""
        if self._database.execute("SELECT to_regclass('access_keys')").fetchone()[0] is not None:
            return
        schema = ROOT_SCHEMA + USER_SCHEMA + KEY_SCHEMA + NAME_SCHEMA
        for name, other in _TYPES.items():
            schema = schema.replace(name, other)
        self._database.execute("BEGIN")
        self._database.execute("SELECT pg_advisory_xact_lock(?)", (MAKING,))
        self._database.execute(f"CREATE SCHEMA IF NOT EXISTS {NAMESPACE}")
        for statement in filter(str.strip, (schema + _OWN).split(";")):
            self._connection.run(statement)
        self._database.execute("COMMIT")

    def _version(self) -> object:
        """Asked for at most once in `BOUND`, and after each change of our own."""
        now = time.monotonic()
        if now - self._confirmed >= BOUND:
            (self._latest,) = self._database.execute("SELECT version FROM changes").fetchone()
            self._confirmed = now  # the moment before the question
        return self._latest

    def sweep(self) -> None:
        """Old rows out of the tables; what a backup or PostgreSQL's own log still has is wrapped under the root key."""
        self._database.execute("VACUUM keys, materials")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
