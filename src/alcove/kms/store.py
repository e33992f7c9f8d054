"""What a KMS keeps: keys, their material, users (kms.md §27).

Core: the Protocol between the service and a database, and the records that cross it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from alcove.kms.keys import Key


@dataclass(frozen=True, slots=True)
class User:
    """A user of the KMS; `policies` are the JSON texts of its identity policies."""

    user_id: str
    name: str
    created: float
    policies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An access key with the user it belongs to; `secret` is in clear, so keep it short-lived."""

    access_key_id: str
    secret: str
    user: User


class KeyStore(Protocol):
    """One database. Everything that returns has happened durably."""

    @property
    def account(self) -> str:
        """The account id that the store was made for, 12 digits."""
        ...

    def derive(self, label: str) -> bytes:
        """A 32-byte secret that all processes of this store share."""
        ...

    def create_key(self, key: Key, material: bytes) -> None:
        """Adds a key and its first material."""
        ...

    def save_key(self, key: Key) -> None:
        """Writes what can change of a key: state, deletion date, policy, description, tags, current material."""
        ...

    def key(self, key_id: str) -> Key | None:
        """One key."""
        ...

    def keys(self, after: str, limit: int) -> list[Key]:
        """Keys in the order of their ids, from the first one greater than `after`."""
        ...

    def material(self, key_id: str, material_id: str) -> bytes | None:
        """Unwrapped key material."""
        ...

    def purge(self, now: float) -> list[str]:
        """Erases keys whose deletion date has come; returns their ids."""
        ...

    def add_user(self, user: User, access_key_id: str, secret: str) -> None:
        """Adds a user with one access key; raises UsageError for a name that is taken."""
        ...

    def remove_user(self, name: str) -> bool:
        """Removes a user with its access keys; False when there is none."""
        ...

    def users(self) -> list[User]:
        """Every user, by name."""
        ...

    def access_key(self, access_key_id: str) -> AccessKey | None:
        """An access key and its user."""
        ...

    def close(self) -> None:
        """Lets go of the database."""
        ...
