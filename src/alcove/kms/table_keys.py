"""Keys and their material in the tables of a store (kms.md §25, §27)."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, Final

from alcove.kms.database import Tables, insert
from alcove.kms.keys import Key, KeyState, Material
from alcove.kms.material import private_key

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS keys (
  key_id TEXT NOT NULL, created REAL NOT NULL, policy TEXT NOT NULL, material_id TEXT NOT NULL, region TEXT NOT NULL,
  description TEXT NOT NULL, state TEXT NOT NULL, deletion_date REAL, window_days INTEGER, spec TEXT NOT NULL,
  usage TEXT NOT NULL, origin TEXT NOT NULL, tags TEXT NOT NULL, rotation_days INTEGER, next_rotation REAL,
  present INTEGER NOT NULL, valid_to REAL, role TEXT NOT NULL, PRIMARY KEY (region, key_id)) STRICT;
CREATE INDEX IF NOT EXISTS keys_everywhere ON keys (key_id);
CREATE TABLE IF NOT EXISTS materials (
  region TEXT NOT NULL, key_id TEXT NOT NULL, material_id TEXT NOT NULL, number INTEGER NOT NULL,
  present INTEGER NOT NULL, pending INTEGER NOT NULL, rotated REAL, rotation_type TEXT, description TEXT,
  valid_to REAL, wrapped BLOB, PRIMARY KEY (region, key_id, material_id),
  FOREIGN KEY (region, key_id) REFERENCES keys ON DELETE CASCADE) STRICT;
"""
_KEY: Final = tuple(field.name for field in fields(Key))
_MATERIAL: Final = tuple(field.name for field in fields(Material))
_ONE_KEY: Final = "region=? AND key_id=?"
_SAVE_MATERIAL: Final = insert(
    "materials", (*_MATERIAL, "region", "key_id", "wrapped"), key=("region", "key_id", "material_id")
)


class KeyTables(Tables):
    """The part of a store that has the keys."""

    def create_key(self, key: Key) -> None:
        """Adds a key, without material."""
        self._database.execute(insert("keys", _KEY), _row(key))

    def save_key(self, key: Key) -> None:
        """Writes a key that is there."""
        changes = ", ".join(f"{name}=?" for name in _KEY)
        query = f"UPDATE keys SET {changes} WHERE {_ONE_KEY}"  # noqa: S608 - the columns are constants
        self._database.execute(query, (*_row(key), key.region, key.key_id))

    def key(self, region: str, key_id: str) -> Key | None:
        """One key."""

        def read() -> Key | None:
            found = self._keys(_ONE_KEY, (region, key_id))
            return found[0] if found else None

        return self._remember(("key", region, key_id), read)

    def keys(self, region: str, after: str, limit: int) -> list[Key]:
        """Keys of a Region in the order of their ids."""
        return self._keys("region=? AND key_id>? ORDER BY key_id LIMIT ?", (region, after, limit))

    def family(self, key_id: str) -> list[Key]:
        """The keys of this id in every Region."""
        return self._keys("key_id=? ORDER BY region", (key_id,))

    def keys_naming(self, name: str) -> list[Key]:
        """The keys whose policy has a text, or an escape that could stand for a part of it."""
        where = "replace(policy, ?, '') <> policy OR replace(policy, ?, '') <> policy ORDER BY region, key_id"
        return self._keys(where, (name, "\\"))

    def due(self, now: float) -> list[Key]:
        """Keys of which material has expired, whose rotation is due, or that wait for their replicas to go."""
        waits = KeyState.PENDING_REPLICA_DELETION.value
        return self._keys("valid_to<=? OR next_rotation<=? OR state=?", (now, now, waits))

    def save_material(self, key: Key, material: Material, secret: bytes | None) -> None:
        """Writes what is known of a material with its secret; without one, the secret is erased."""
        name = _material_name(key.key_id, material.material_id)
        wrapped = self._root.wrap(secret, name) if secret is not None else None
        self._database.execute(_SAVE_MATERIAL, (*_facts(material), key.region, key.key_id, wrapped))
        self._erased = self._erased or secret is None

    def mark_material(self, key: Key, material: Material) -> None:
        """Writes what is known of a material."""
        changes = ", ".join(f"{name}=?" for name in _MATERIAL)
        query = f"UPDATE materials SET {changes} WHERE {_ONE_KEY} AND material_id=?"  # noqa: S608 - as above
        self._database.execute(query, (*_facts(material), key.region, key.key_id, material.material_id))

    def materials(self, key: Key) -> list[Material]:
        """What is known of a key's materials, the first one first."""
        query = f"SELECT {', '.join(_MATERIAL)} FROM materials WHERE {_ONE_KEY} ORDER BY number"  # noqa: S608 - as above
        rows = self._database.execute(query, (key.region, key.key_id))
        return [_material(dict(zip(_MATERIAL, row, strict=True))) for row in rows]

    def material(self, key: Key, material_id: str) -> bytes | None:
        """Unwrapped key material."""
        query = f"SELECT wrapped FROM materials WHERE {_ONE_KEY} AND material_id=?"  # noqa: S608 - as above

        def read() -> bytes | None:
            row = self._database.execute(query, (key.region, key.key_id, material_id)).fetchone()
            return self._root.unwrap(row[0], _material_name(key.key_id, material_id)) if row and row[0] else None

        return self._remember(("material", key.region, key.key_id, material_id), read)

    def private_key(self, key: Key, material_id: str) -> Any:
        """The parsed private key of a pair's material, remembered as the material is: parsing can cost a signature."""

        def read() -> Any:
            material = self.material(key, material_id)
            return None if material is None else private_key(material)

        return self._remember(("private key", key.region, key.key_id, material_id), read)

    def purge(self, now: float) -> list[tuple[str, str]]:
        """Erases keys whose deletion date has come."""
        with self.transaction():
            query = "SELECT region, key_id FROM keys WHERE deletion_date<=?"
            due = self._database.execute(query, (now,)).fetchall()
            if due:
                self._database.executemany(f"DELETE FROM keys WHERE {_ONE_KEY}", due)  # noqa: S608 - as above
        return [(region, key_id) for region, key_id in due]

    def _keys(self, where: str, values: tuple[Any, ...]) -> list[Key]:
        query = f"SELECT {', '.join(_KEY)} FROM keys WHERE {where}"  # noqa: S608 - as above
        return [_key(row) for row in self._database.execute(query, values)]


def _row(key: Key) -> tuple[Any, ...]:
    changed = {"state": key.state.value, "tags": json.dumps(dict(key.tags)), "present": int(key.present)}
    return tuple(changed.get(name, getattr(key, name)) for name in _KEY)


def _key(row: tuple[Any, ...]) -> Key:
    values = dict(zip(_KEY, row, strict=True))
    values |= {
        "state": KeyState(values["state"]),
        "tags": json.loads(values["tags"]),
        "present": bool(values["present"]),
    }
    return Key(**values)


def _facts(material: Material) -> tuple[Any, ...]:
    return tuple(int(v) if isinstance(v := getattr(material, name), bool) else v for name in _MATERIAL)


def _material(values: dict[str, Any]) -> Material:
    return Material(**values | {"present": bool(values["present"]), "pending": bool(values["pending"])})


def _material_name(key_id: str, material_id: str) -> str:
    return f"material/{key_id}/{material_id}"
