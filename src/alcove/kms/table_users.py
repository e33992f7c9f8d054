"""Users, roles and access keys in the tables of a store (kms.md §8.3, §25)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from alcove.errors import UsageError
from alcove.kms.database import Tables, insert
from alcove.kms.store import AccessKey, Role, User

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS users (
  user_id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created REAL NOT NULL, policies TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS access_keys (
  access_key_id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
  wrapped BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS roles (
  role_id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created REAL NOT NULL, policies TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS role_trust (
  role_id TEXT NOT NULL REFERENCES roles ON DELETE CASCADE, user_id TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
  PRIMARY KEY (role_id, user_id)) STRICT;
"""


class UserTables(Tables):
    """The part of a store that knows who there is."""

    def add_user(self, user: User, access_key_id: str, secret: str) -> None:
        """Adds a user with one access key."""
        row = (user.user_id, user.name, user.created, json.dumps(user.policies))
        try:
            with self.transaction():
                self._database.execute("INSERT INTO users VALUES (?,?,?,?)", row)
                self._insert_key(user.user_id, access_key_id, secret)
        except self._conflict:
            raise UsageError(f"there is a user {user.name} already") from None

    def remove_user(self, name: str) -> bool:
        """Removes a user with its access keys, and from the trust of every role."""
        return self._database.execute("DELETE FROM users WHERE name=?", (name,)).rowcount > 0

    def users(self) -> list[User]:
        """Every user, by name."""
        rows = self._database.execute("SELECT user_id, name, created, policies FROM users ORDER BY name")
        return [_user(row) for row in rows]

    def save_user_policies(self, name: str, policies: Sequence[str]) -> bool:
        """Replaces the identity policies of a user; False when there is none."""
        query = "UPDATE users SET policies=? WHERE name=?"
        return self._database.execute(query, (json.dumps(list(policies)), name)).rowcount > 0

    def access_key(self, access_key_id: str) -> AccessKey | None:
        """An access key and its user."""
        query = (
            "SELECT user_id, name, created, policies, wrapped FROM access_keys JOIN users USING (user_id) "
            "WHERE access_key_id=?"
        )

        def read() -> AccessKey | None:
            row = self._database.execute(query, (access_key_id,)).fetchone()
            if row is None:
                return None
            secret = self._root.unwrap(row[4], secret_name(access_key_id)).decode()
            return AccessKey(access_key_id, secret, _user(row[:4]))

        return self._remember(("access key", access_key_id), read)

    def access_key_ids(self, name: str) -> list[str]:
        """The ids of a user's access keys, the oldest first."""
        query = (
            "SELECT access_key_id FROM access_keys JOIN users USING (user_id) WHERE name=? ORDER BY access_keys.rowid"
        )
        return [row[0] for row in self._database.execute(query, (name,))]

    def add_access_key(self, name: str, access_key_id: str, secret: str, *, instead: bool, limit: int) -> None:
        """Gives a user one more access key, or one instead of all it has."""
        with self.transaction():
            row = self._database.execute("SELECT user_id FROM users WHERE name=?", (name,)).fetchone()
            if row is None:
                raise UsageError(f"there is no user {name}")
            if instead:
                self._database.execute("DELETE FROM access_keys WHERE user_id=?", row)
            elif len(self.access_key_ids(name)) >= limit:
                raise UsageError(
                    f"{name} has {limit} access keys already", hint="remove one with `alcove kms user revoke`"
                )
            self._insert_key(row[0], access_key_id, secret)

    def remove_access_key(self, name: str, access_key_id: str) -> bool:
        """Removes one access key of a user; False when it has no such key."""
        query = "DELETE FROM access_keys WHERE access_key_id=? AND user_id=(SELECT user_id FROM users WHERE name=?)"
        return self._database.execute(query, (access_key_id, name)).rowcount > 0

    def add_role(self, role: Role) -> None:
        """Adds a role that trusts users by their ids."""
        row = (role.role_id, role.name, role.created, json.dumps(role.policies))
        try:
            with self.transaction():
                self._database.execute("INSERT INTO roles VALUES (?,?,?,?)", row)
                pairs = [(role.role_id, user_id) for user_id in role.trusted]
                self._database.executemany("INSERT INTO role_trust VALUES (?,?)", pairs)
        except self._conflict:
            raise UsageError(f"there is a role {role.name} already") from None

    def remove_role(self, name: str) -> bool:
        """Removes a role; its sessions end with it."""
        return self._database.execute("DELETE FROM roles WHERE name=?", (name,)).rowcount > 0

    def save_role_policies(self, name: str, policies: Sequence[str]) -> bool:
        """Replaces the identity policies of a role; False when there is none."""
        query = "UPDATE roles SET policies=? WHERE name=?"
        return self._database.execute(query, (json.dumps(list(policies)), name)).rowcount > 0

    def roles(self) -> list[Role]:
        """Every role, by name."""
        rows = self._database.execute("SELECT role_id, name, created, policies FROM roles ORDER BY name")
        return [self._role(row) for row in rows.fetchall()]

    def role(self, role_id: str) -> Role | None:
        """One role, by its id."""
        query = "SELECT role_id, name, created, policies FROM roles WHERE role_id=?"

        def read() -> Role | None:
            row = self._database.execute(query, (role_id,)).fetchone()
            return self._role(row) if row else None

        return self._remember(("role", role_id), read)

    def _role(self, row: tuple[Any, ...]) -> Role:
        query = "SELECT user_id FROM role_trust WHERE role_id=? ORDER BY user_id"
        trusted = tuple(found[0] for found in self._database.execute(query, (row[0],)))
        return Role(row[0], row[1], row[2], tuple(json.loads(row[3])), trusted)

    def _insert_key(self, user_id: str, access_key_id: str, secret: str) -> None:
        wrapped = self._root.wrap(secret.encode(), secret_name(access_key_id))
        columns = ("access_key_id", "user_id", "wrapped")
        self._database.execute(insert("access_keys", columns), (access_key_id, user_id, wrapped))


def secret_name(access_key_id: str) -> str:
    """The name under which the secret of an access key is wrapped."""
    return f"access-key/{access_key_id}"


def _user(row: tuple[Any, ...]) -> User:
    return User(row[0], row[1], row[2], tuple(json.loads(row[3])))
