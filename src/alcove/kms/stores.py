"""Opens a store, of whichever kind its URL names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from alcove.errors import UsageError
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
