"""The root key of a store: proving that it is the right one, and changing it (kms.md §25).

The store holds a verifier, wrapped under its root key, and the root key's fingerprint in clear. A change of the root
key wraps everything anew in one transaction; the new root key waits in a file of its own until then, so that a crash at
any moment leaves a root key that opens the store.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Final

from alcove.errors import UsageError
from alcove.kms.database import insert
from alcove.kms.rootkey import RootKey
from alcove.kms.rootplace import RootPlace
from alcove.kms.table_users import UserTables

DEFAULT_ACCOUNT: Final = "111122223333"
SCHEMA_VERSION: Final = 2
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, wrapped BLOB NOT NULL) STRICT;
"""
WRAPPED: Final = {  # table → the columns that name a secret, and its name; the secret is in the column `wrapped`
    "materials": ("key_id, material_id", "material/{}/{}"),
    "access_keys": ("access_key_id", "access-key/{}"),
    "secrets": ("name", "secret/{}"),
}
_VERIFIER: Final = b"this store was made under this root key"


class RootTables(UserTables):
    """The part of a store that has the root key, and whose store it is."""

    @property
    def account(self) -> str:
        """The account id that the store was made for, 12 digits."""
        return self._account

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the root key."""
        return self._root.fingerprint

    def check(self) -> None:
        """Returns when the database answers."""
        self._database.execute("SELECT 1 FROM meta WHERE name='verifier'").fetchone()

    @property
    def root_key(self) -> RootKey:
        """The root key."""
        return self._root

    def derive(self, label: str) -> bytes:
        """A 32-byte secret that all processes of this store share."""
        return self._root.derive(label)

    def secret(self, name: str) -> bytes:
        """A 32-byte secret that all processes of this store share, and that outlives its root keys."""
        query = "SELECT wrapped FROM secrets WHERE name=?"

        def read() -> bytes:
            row = self._database.execute(query, (name,)).fetchone()
            if row is None:
                wrapped = self._root.wrap(secrets.token_bytes(32), f"secret/{name}")
                self._database.execute("INSERT INTO secrets VALUES (?,?) ON CONFLICT DO NOTHING", (name, wrapped))
                row = self._database.execute(query, (name,)).fetchone()
            return self._root.unwrap(row[0], f"secret/{name}")

        return self._remember(("secret", name), read)

    def save_note(self, name: str, text: str) -> None:
        """Remembers a text that is no secret."""
        self._save_meta(f"note {name}", text.encode())

    def note(self, name: str) -> str | None:
        """A text that was remembered."""
        text: str | None = self._meta(f"note {name}")
        return text

    def notes(self, prefix: str) -> list[str]:
        """The names of the texts that are remembered under names that begin so, in order."""
        start = f"note {prefix}"
        query = "SELECT name FROM meta WHERE substr(name, 1, ?)=?"
        rows = self._database.execute(query, (len(start), start)).fetchall()
        return sorted(str(row[0]).removeprefix("note ") for row in rows)

    def rotate(self, place: RootPlace, new: RootKey) -> Path:
        """Wraps everything under a new root key, which is staged already; returns where the former one is kept.

        Nobody else may have the store open.
        """
        former = self._root
        with self.transaction():
            for table in WRAPPED:
                self._rewrap(table, new)
            self._save_meta("verifier", new.wrap(_VERIFIER, "verifier"))
            self._save_meta("fingerprint", new.fingerprint.encode())
            self._root = new
        self.sweep()
        return place.promote(former.fingerprint)

    def _rewrap(self, table: str, new: RootKey) -> None:
        columns, form = WRAPPED[table]
        where = " AND ".join(f"{column.strip()}=?" for column in columns.split(","))
        update = f"UPDATE {table} SET wrapped=? WHERE {where} AND wrapped IS NOT NULL"  # noqa: S608 - from a constant
        query = f"SELECT {columns}, wrapped FROM {table} WHERE wrapped IS NOT NULL"  # noqa: S608 - from a constant
        for *names, wrapped in self._database.execute(query).fetchall():
            name = form.format(*names)
            self._database.execute(update, (new.wrap(self._root.unwrap(wrapped, name), name), *names))

    def _identify(self, place: RootPlace, account: str | None) -> None:
        """The root key and the account; of a new store they are settled by this."""
        self._root = self._open_root(place, account)
        self._account = str(self._meta("account"))
        if account is not None and account != self._account:
            raise UsageError(f"the store belongs to account {self._account}, not {account}")

    def _open_root(self, place: RootPlace, account: str | None) -> RootKey:
        """The root key. It is opened before the database is locked: somebody may be typing a passphrase."""
        verifier = self._meta("verifier")
        if verifier is None:
            ready = place.load() if place.exists else None
            with self.transaction():  # two first starts make one root key
                verifier = self._meta("verifier")
                if verifier is None:
                    return self._first(ready or place.create(), account)
        root = self._fitting(place, verifier)
        if int(self._meta("schema") or 0) != SCHEMA_VERSION:
            raise UsageError("the store was made by another version of this program")
        if self._meta("fingerprint") is None:
            self._save_meta("fingerprint", root.fingerprint.encode())
        return root

    def _first(self, root: RootKey, account: str | None) -> RootKey:
        self._save_meta("verifier", root.wrap(_VERIFIER, "verifier"))
        self._save_meta("fingerprint", root.fingerprint.encode())
        self._save_meta("account", (account or DEFAULT_ACCOUNT).encode())
        self._save_meta("schema", str(SCHEMA_VERSION).encode())
        return root

    def _fitting(self, place: RootPlace, verifier: bytes) -> RootKey:
        root = place.load()
        if _fits(root, verifier):
            return root
        if place.staged.path.exists():
            staged = place.staged.load()
            if _fits(staged, verifier):  # a rotation ended between its commit and its rename
                place.promote(root.fingerprint)
                return staged
        needed = self._meta("fingerprint")
        raise UsageError(
            f"{place.name} is not the root key of this store",
            hint=f"restore the root key that the store was made with{f', {needed}' if needed else ''}",
        )

    def _meta(self, name: str) -> Any:
        row = self._database.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return None if row is None else row[0] if name == "verifier" else row[0].decode()

    def _save_meta(self, name: str, value: bytes) -> None:
        self._database.execute(insert("meta", ("name", "value"), key=("name",)), (name, value))


def _fits(root: RootKey, verifier: bytes) -> bool:
    try:
        root.unwrap(verifier, "verifier")
    except ValueError:
        return False
    return True
