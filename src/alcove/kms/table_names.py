"""Aliases, grants and last uses in the tables of a store (kms.md §17, §18, §21)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from alcove.kms.database import Tables, insert
from alcove.kms.keys import Key
from alcove.kms.store import Alias, Grant, Usage

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS aliases (
  region TEXT NOT NULL, name TEXT NOT NULL, key_id TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
  PRIMARY KEY (region, name), FOREIGN KEY (region, key_id) REFERENCES keys ON DELETE CASCADE) STRICT;
CREATE INDEX IF NOT EXISTS aliases_of_keys ON aliases (region, key_id, name);
CREATE TABLE IF NOT EXISTS grants (
  grant_id TEXT PRIMARY KEY, region TEXT NOT NULL, key_id TEXT NOT NULL, created REAL NOT NULL, grantee TEXT NOT NULL,
  operations TEXT NOT NULL, name TEXT, grantee_id TEXT NOT NULL, retiring TEXT NOT NULL, retiring_id TEXT NOT NULL,
  constraints TEXT NOT NULL, FOREIGN KEY (region, key_id) REFERENCES keys ON DELETE CASCADE) STRICT;
CREATE INDEX IF NOT EXISTS grants_of_keys ON grants (region, key_id, grantee);
CREATE INDEX IF NOT EXISTS grants_to_retire ON grants (retiring, region);
CREATE TABLE IF NOT EXISTS usages (
  region TEXT NOT NULL, key_id TEXT NOT NULL, operation TEXT NOT NULL, at REAL NOT NULL, event_id TEXT NOT NULL,
  request_id TEXT NOT NULL, PRIMARY KEY (region, key_id),
  FOREIGN KEY (region, key_id) REFERENCES keys ON DELETE CASCADE) STRICT;
"""
_ALIAS: Final = tuple(field.name for field in fields(Alias))
_GRANT: Final = tuple(field.name for field in fields(Grant))


class NameTables(Tables):
    """The part of a store that has what points to keys."""

    def save_alias(self, alias: Alias) -> None:
        """Adds an alias, or gives it another key."""
        values = tuple(getattr(alias, name) for name in _ALIAS)
        self._database.execute(insert("aliases", _ALIAS, key=("region", "name")), values)

    def remove_alias(self, alias: Alias) -> None:
        """Removes an alias."""
        self._database.execute("DELETE FROM aliases WHERE region=? AND name=?", (alias.region, alias.name))

    def alias(self, region: str, name: str) -> Alias | None:
        """One alias."""
        query = f"SELECT {', '.join(_ALIAS)} FROM aliases WHERE region=? AND name=?"  # noqa: S608 - constants

        def read() -> Alias | None:
            row = self._database.execute(query, (region, name)).fetchone()
            return Alias(*row) if row else None

        return self._remember(("alias", region, name), read)

    def aliases(self, region: str, after: str, limit: int, key_id: str | None = None) -> list[Alias]:
        """Aliases of a Region, or of one key in it, in the order of their names."""
        one = "AND key_id=? " if key_id else ""
        query = f"SELECT {', '.join(_ALIAS)} FROM aliases WHERE region=? AND name>? {one}ORDER BY name LIMIT ?"  # noqa: S608 - constants
        values = (region, after, *((key_id,) if key_id else ()), limit)
        return [Alias(*row) for row in self._database.execute(query, values)]

    def add_grant(self, grant: Grant) -> None:
        """Adds a grant."""
        changed = {"operations": json.dumps(grant.operations), "constraints": json.dumps(grant.constraints)}
        values = tuple(changed.get(name, getattr(grant, name)) for name in _GRANT)
        self._database.execute(insert("grants", _GRANT), values)

    def remove_grant(self, grant: Grant) -> None:
        """Removes a grant."""
        self._database.execute("DELETE FROM grants WHERE grant_id=?", (grant.grant_id,))

    def grant(self, grant_id: str) -> Grant | None:
        """One grant."""
        found = self.grants("", 1, grant_id=grant_id)
        return found[0] if found else None

    def grants(self, after: str, limit: int, **match: str) -> list[Grant]:
        """Grants in the order of their ids, of which each named attribute has this value."""
        if not match.keys() <= set(_GRANT):
            raise ValueError(f"grants have no {', '.join(match)}")
        where = " AND ".join(["grant_id>?", *(f"{name}=?" for name in match)])
        query = f"SELECT {', '.join(_GRANT)} FROM grants WHERE {where} ORDER BY grant_id LIMIT ?"  # noqa: S608 - checked above

        def read() -> list[Grant]:
            return [_grant(row) for row in self._database.execute(query, (after, *match.values(), limit))]

        whole = not after and "grantee" in match and "key_id" in match  # what authorization asks with each call
        return self._remember(("grants", str(limit), *match, *match.values()), read) if whole else read()

    def count_grants(self, key: Key) -> int:
        """How many grants a key has."""
        query = "SELECT count(*) FROM grants WHERE region=? AND key_id=?"
        return int(self._database.execute(query, (key.region, key.key_id)).fetchone()[0])

    def save_usages(self, usages: Sequence[Usage]) -> None:
        """Writes the last uses of keys; keys that are gone are left out."""
        query = (
            "INSERT INTO usages SELECT region, key_id, ?, ?, ?, ? FROM keys WHERE region=? AND key_id=? "
            "ON CONFLICT (region, key_id) DO UPDATE SET operation=excluded.operation, at=excluded.at, "
            "event_id=excluded.event_id, request_id=excluded.request_id WHERE excluded.at >= usages.at"
        )
        rows = [(u.operation, u.at, u.event_id, u.request_id, u.region, u.key_id) for u in usages]
        with self.transaction():
            self._database.executemany(query, rows)

    def usage(self, region: str, key_id: str) -> Usage | None:
        """The last use of a key that was saved."""
        query = "SELECT region, key_id, operation, at, event_id, request_id FROM usages WHERE region=? AND key_id=?"
        row = self._database.execute(query, (region, key_id)).fetchone()
        return Usage(*row) if row else None


def _grant(row: tuple[Any, ...]) -> Grant:
    values = dict(zip(_GRANT, row, strict=True))
    values |= {"operations": tuple(json.loads(values["operations"])), "constraints": json.loads(values["constraints"])}
    return Grant(**values)
