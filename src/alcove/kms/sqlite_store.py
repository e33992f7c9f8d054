"""A KeyStore in one SQLite file: WAL, synchronous FULL, deleted bytes overwritten (kms.md §25, §27)."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any, Final

from alcove.errors import MachineError, UsageError
from alcove.kms.keys import Key, KeyState
from alcove.kms.rootkey import RootKey, create_root_key, load_root_key
from alcove.kms.sqlite_users import SCHEMA as USER_SCHEMA
from alcove.kms.sqlite_users import UserTables

DEFAULT_ACCOUNT: Final = "111122223333"
SCHEMA_VERSION: Final = 1
_VERIFIER = b"this store was made under this root key"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS keys (
  key_id TEXT PRIMARY KEY, created REAL NOT NULL, policy TEXT NOT NULL, material_id TEXT NOT NULL,
  description TEXT NOT NULL, state TEXT NOT NULL, deletion_date REAL, spec TEXT NOT NULL, usage TEXT NOT NULL,
  origin TEXT NOT NULL, tags TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS materials (
  key_id TEXT NOT NULL REFERENCES keys ON DELETE CASCADE, material_id TEXT NOT NULL, wrapped BLOB NOT NULL,
  PRIMARY KEY (key_id, material_id)) STRICT;
"""
_COLUMNS = "key_id, created, policy, material_id, description, state, deletion_date, spec, usage, origin, tags"


def open_store(url: str, root_key: Path, *, account: str | None = None) -> SqliteStore:
    """Opens a store, or makes it with its root key when there is none.

    Args:
        url: ``sqlite:///relative``, ``sqlite:////absolute`` or a bare path.
        root_key: File of the root key.
        account: Account id for a new store; one that exists keeps its own.

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
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return SqliteStore(path, root_key, account)
    except (OSError, sqlite3.Error) as error:
        raise MachineError(f"cannot open the store {path}: {error}") from error


class SqliteStore(UserTables):
    """One connection to one file; use it from one thread at a time. Made by `open_store`."""

    def __init__(self, path: Path, root_key: Path, account: str | None) -> None:
        self._database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            pragmas = ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON", "temp_store=2")
            for pragma in pragmas:
                self._database.execute(f"PRAGMA {pragma}")
            with self._transaction():
                for statement in filter(str.strip, (_SCHEMA + USER_SCHEMA).split(";")):
                    self._database.execute(statement)
                self._root = self._open_root(root_key, account)
            self._account = str(self._meta("account"))
        except BaseException:
            self._database.close()
            raise
        if account is not None and account != self._account:
            self._database.close()
            raise UsageError(f"the store {path} belongs to account {self._account}, not {account}")

    @property
    def account(self) -> str:
        """The account id that the store was made for, 12 digits."""
        return self._account

    def derive(self, label: str) -> bytes:
        """A 32-byte secret that all processes of this store share."""
        return self._root.derive(label)

    def create_key(self, key: Key, material: bytes) -> None:
        """Adds a key and its first material."""
        wrapped = self._root.wrap(material, _material_name(key.key_id, key.material_id))
        with self._transaction():
            self._database.execute(f"INSERT INTO keys ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)", _row(key))  # noqa: S608
            self._database.execute("INSERT INTO materials VALUES (?,?,?)", (key.key_id, key.material_id, wrapped))

    def save_key(self, key: Key) -> None:
        """Writes what can change of a key."""
        self._database.execute(
            "UPDATE keys SET policy=?, material_id=?, description=?, state=?, deletion_date=?, tags=? WHERE key_id=?",
            (*_row(key)[2:7], _row(key)[10], key.key_id),
        )

    def key(self, key_id: str) -> Key | None:
        """One key."""
        query = f"SELECT {_COLUMNS} FROM keys WHERE key_id=?"  # noqa: S608 - the columns are a constant
        row = self._database.execute(query, (key_id,)).fetchone()
        return _key(row) if row else None

    def keys(self, after: str, limit: int) -> list[Key]:
        """Keys in the order of their ids."""
        query = f"SELECT {_COLUMNS} FROM keys WHERE key_id>? ORDER BY key_id LIMIT ?"  # noqa: S608 - as above
        return [_key(row) for row in self._database.execute(query, (after, limit))]

    def material(self, key_id: str, material_id: str) -> bytes | None:
        """Unwrapped key material."""
        query = "SELECT wrapped FROM materials WHERE key_id=? AND material_id=?"
        row = self._database.execute(query, (key_id, material_id)).fetchone()
        return self._root.unwrap(row[0], _material_name(key_id, material_id)) if row else None

    def purge(self, now: float) -> list[str]:
        """Erases keys whose deletion date has come, from the file, its log and its free pages."""
        due = [row[0] for row in self._database.execute("SELECT key_id FROM keys WHERE deletion_date<=?", (now,))]
        if due:
            with self._transaction():
                self._database.executemany("DELETE FROM keys WHERE key_id=?", [(key_id,) for key_id in due])
            self._database.execute("VACUUM")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return due

    def close(self) -> None:
        """Lets go of the database."""
        self._database.close()

    def _open_root(self, path: Path, account: str | None) -> RootKey:
        """Inside the transaction, so two first starts make one root key."""
        verifier = self._meta("verifier")
        if verifier is None:
            root = load_root_key(path) if path.exists() else create_root_key(path)
            values = {
                "verifier": root.wrap(_VERIFIER, "verifier"),
                "account": account or DEFAULT_ACCOUNT,
                "schema": SCHEMA_VERSION,
            }
            self._database.executemany("INSERT INTO meta VALUES (?,CAST(? AS BLOB))", values.items())
            return root
        root = load_root_key(path)
        try:
            root.unwrap(verifier, "verifier")
        except ValueError:
            raise UsageError(
                f"{path} is not the root key of this store", hint="restore the root key that the store was made with"
            ) from None
        if int(self._meta("schema") or 0) != SCHEMA_VERSION:
            raise UsageError("the store was made by another version of this program")
        return root

    def _meta(self, name: str) -> Any:
        row = self._database.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return None if row is None else row[0] if name == "verifier" else row[0].decode()


def _row(key: Key) -> tuple[Any, ...]:
    changing = (key.policy, key.material_id, key.description, key.state.value, key.deletion_date)
    return (key.key_id, key.created, *changing, key.spec, key.usage, key.origin, json.dumps(dict(key.tags)))


def _key(row: tuple[Any, ...]) -> Key:
    names = ("key_id", "created", "policy", "material_id", "description")
    fixed: dict[str, Any] = dict(zip(names, row, strict=False))
    return Key(
        **fixed,
        state=KeyState(row[5]),
        deletion_date=row[6],
        spec=row[7],
        usage=row[8],
        origin=row[9],
        tags=json.loads(row[10]),
    )


def _material_name(key_id: str, material_id: str) -> str:
    return f"material/{key_id}/{material_id}"
