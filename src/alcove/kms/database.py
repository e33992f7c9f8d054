"""What the tables of a store need of a database, and what they remember of it.

Core: no I/O of its own; a store brings its database.

The SQL is what SQLite and PostgreSQL have in common, with ``?`` for values. What a table remembers is good for one
version of the database: a store's `_version` is another one after every change, whoever made it. Within a transaction
nothing is remembered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeVar

from alcove.kms.rootkey import RootKey

MAX_REMEMBERED: Final = 8192  # rows and parsed keys; some 2 KiB each, unless policies are large
T = TypeVar("T")


class Rows(Protocol):
    """The outcome of a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""
        ...

    def fetchone(self) -> Any:
        """The next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """The rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Database(Protocol):
    """One connection."""

    def execute(self, query: str, values: Sequence[Any] = (), /) -> Rows:
        """Runs one statement."""
        ...

    def executemany(self, query: str, values: Sequence[Sequence[Any]], /) -> object:
        """Runs one statement for each row of values."""
        ...


class Tables(ABC):
    """What all parts of a store share."""

    _database: Database
    _root: RootKey
    _erased: bool = False  # a secret was erased in this transaction
    _depth: int = 0  # of nested transactions
    _looked: bool = False  # the version was asked for, and nothing was changed here since
    _conflict: type[Exception]  # what the database raises for a second row of one name

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Any] = {}
        self._known_version: object = None

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Of the whole store."""

    @abstractmethod
    def _version(self) -> object:
        """What is another value after a change of the database."""

    @abstractmethod
    def sweep(self) -> None:
        """Gets what was erased out of the database's files, as far as it can."""

    def look(self) -> None:
        """Asks for the version once for all that is read until `leave`, or until something is written here."""
        self._look()
        self._looked = True

    def leave(self) -> None:
        """What is read next may have changed again."""
        self._looked = False

    def _look(self) -> None:
        version = self._version()
        if version != self._known_version:
            self._known.clear()
            self._known_version = version

    def _remember(self, name: tuple[str, ...], read: Callable[[], T]) -> T:
        """What `read` finds, now or before in this version of the database. What is not there is not remembered."""
        if self._depth:
            return read()
        if not self._looked:
            self._look()
        if name in self._known:
            found: T = self._known[name]
            return found
        found = read()
        if found is not None:
            if len(self._known) >= MAX_REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[name] = found
        return found


def insert(table: str, columns: Sequence[str], *, key: Sequence[str] = ()) -> str:
    """The statement that adds a row; with `key`, it takes the place of the row that has the same one."""
    marks = ",".join("?" * len(columns))
    query = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - names are constants
    if not key:
        return query
    changes = ", ".join(f"{name}=excluded.{name}" for name in columns if name not in key)
    return f"{query} ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
