"""One connection to PostgreSQL that tables can use as they use SQLite (kms.md §27).

Statements have ``?`` for values, which psycopg writes otherwise. What writes outside of a transaction gets one of its
own, and every transaction that writes starts by counting up the one row of `changes`: that makes writers wait for each
other, as in SQLite, and tells every other server that what it remembers is old. A connection that broke is made again
before the next statement; a transaction that it broke in is lost, and says so.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import psycopg

from alcove.kms.database import Rows
from alcove.kms.errors import validation

SCHEMA: Final = "alcove_kms"
LOCK: Final = 0x616C636F7665  # "alcove": the advisory lock that everyone who has the store open shares
OPTIONS: Final = {  # of every session
    "search_path": SCHEMA,
    "synchronous_commit": "on",  # an answered write is on disk, whatever the server's default
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",  # a server that hangs does not stop the others for ever
    "client_encoding": "UTF8",
}
CONNECT_TIMEOUT: Final = 5
T = TypeVar("T")
_WRITES: Final = ("INSERT", "UPDATE", "DELETE")


class PostgresDatabase:
    """A connection, made again when it breaks.

    Args:
        url: For libpq; passwords come from its own places (PGPASSFILE, PGPASSWORD, a service file).
        exclusive: Whether nobody else may have the store open.

    Raises:
        psycopg.Error: There is no connection, or another schema.
        BlockingIOError: Somebody else has the store open, or has it for himself.
    """

    def __init__(self, url: str, *, exclusive: bool) -> None:
        self._url = url
        self._exclusive = exclusive
        self._in_transaction = False
        self._live = self._connect()

    def execute(self, query: str, values: Sequence[Any] = ()) -> Rows:
        """Runs one statement; a write outside of a transaction in one of its own."""
        if self._in_transaction:
            return self.run(query, values)
        if query.startswith(_WRITES):
            with self.transaction():
                return self.run(query, values)
        return self._again(lambda: self.run(query, values))

    def executemany(self, query: str, values: Sequence[Sequence[Any]]) -> None:
        """Runs one statement for each row of values, within a transaction."""
        with self._live.cursor() as cursor:
            cursor.executemany(_translated(query), values)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One that writes; not to be nested."""
        self._again(self._begin)
        self._in_transaction = True
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with contextlib.suppress(psycopg.Error):  # the connection is gone, and the transaction with it
                self.run("ROLLBACK")
            raise
        finally:
            self._in_transaction = False

    def close(self) -> None:
        """Ends the session, and with it the lock."""
        self._live.close()

    def _begin(self) -> None:
        self.run("BEGIN")
        self.run("UPDATE changes SET version = version + 1")

    def _again(self, run: Callable[[], T]) -> T:
        """What has changed nothing yet is done a second time when the connection was broken."""
        if not self._live.closed:
            try:
                return run()
            except psycopg.OperationalError:
                if not self._live.closed:
                    self.run("ROLLBACK")
                    raise
        self._live = self._connect()
        return run()

    def run(self, query: str, values: Sequence[Any] = ()) -> Rows:
        """Runs one statement as it is."""
        try:
            return self._live.execute(_translated(query), values)
        except psycopg.DataError:
            if any(isinstance(value, str) and "\0" in value for value in values):
                raise validation("a text with a NUL character cannot be kept in PostgreSQL") from None
            raise

    def _connect(self) -> psycopg.Connection[Any]:
        options = " ".join(f"-c {name}={value}" for name, value in OPTIONS.items())
        live = psycopg.connect(
            self._url,
            autocommit=True,
            options=options,
            connect_timeout=CONNECT_TIMEOUT,
            application_name="alcove kms",
            keepalives_idle=10,
            tcp_user_timeout=15_000,
        )
        try:
            shared = "" if self._exclusive else "_shared"
            row = live.execute(f"SELECT pg_try_advisory_lock{shared}(%s)", (LOCK,)).fetchone()
        except BaseException:
            live.close()
            raise
        if not row or not row[0]:
            live.close()
            raise BlockingIOError
        return live


@functools.cache
def _translated(query: str) -> str:
    """The statement with psycopg's marks; statements are constants, so they are few."""
    return query.replace("?", "%s")
