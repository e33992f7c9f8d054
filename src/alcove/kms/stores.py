"""Opens a store, of whichever kind its URL names."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from alcove.errors import MachineError, UsageError
from alcove.kms.rootplace import RootPlace
from alcove.kms.sqlite_store import SqliteStore
from alcove.kms.sqlite_store import open_store as open_sqlite

if TYPE_CHECKING:
    from alcove.kms.postgres_store import PostgresStore

Store: TypeAlias = "SqliteStore | PostgresStore"

POSTGRES: Final = ("postgresql://", "postgres://")


def is_postgres(url: str) -> bool:
    """Whether a URL names a PostgreSQL database."""
    return url.startswith(POSTGRES)


def open_store(url: str, root_key: Path | RootPlace, *, account: str | None = None, exclusive: bool = False) -> Store:
    """Opens a store, or makes it with its root key when there is none.

    Args:
        url: ``sqlite:///path`` or ``postgresql://…``.
        root_key: Where the root key is.
        account: Account id for a new store; one that exists keeps its own.
        exclusive: Whether nobody else may have it open.

    Raises:
        UsageError: Wrong URL, psycopg is missing, root key missing or wrong, another account.
        MachineError: The database cannot be used.
    """
    if not is_postgres(url):
        return open_sqlite(url, root_key, account=account, exclusive=exclusive)
    try:
        from alcove.kms.postgres_store import open_postgres  # noqa: PLC0415 - an extra that not everyone has
    except ImportError as error:
        raise UsageError("PostgreSQL needs psycopg", hint="pip install 'psycopg[binary]'") from error
    place = root_key if isinstance(root_key, RootPlace) else RootPlace.of(root_key)
    return open_postgres(url, place, account=account, exclusive=exclusive)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """What a database says when it fails in the block, as a command tells it.

    Raises:
        MachineError: It was full, locked, away, or a standby that nobody may write to.
    """
    try:
        yield
    except _failures() as error:
        text = " ".join(str(error).split())
        hint = "it may be a standby: name the server that is written to" if "read-only" in text else None
        raise MachineError(f"cannot use the store: {text}", hint=hint) from error


def _failures() -> tuple[type[Exception], ...]:
    """The classes of databases that are in use: who has SQLite alone does not load psycopg, nor need to have it."""
    loaded = sys.modules.get("psycopg")
    return (sqlite3.Error, loaded.Error) if loaded else (sqlite3.Error,)
