"""What a KMS keeps: keys, their material, users (kms.md §27).

Core: the Protocol between the service and a database, and the records that cross it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
class Role:
    """A role that some users may take on; `trusted` are their ids, `policies` as in `User`."""

    role_id: str
    name: str
    created: float
    policies: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()


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

    def save_user_policies(self, name: str, policies: Sequence[str]) -> bool:
        """Replaces the identity policies of a user; False when there is none."""
        ...

    def access_key(self, access_key_id: str) -> AccessKey | None:
        """An access key and its user."""
        ...

    def access_key_ids(self, name: str) -> list[str]:
        """The ids of a user's access keys, the oldest first."""
        ...

    def add_access_key(self, name: str, access_key_id: str, secret: str, *, instead: bool, limit: int) -> None:
        """Gives a user one more access key, `limit` in all, or one instead of all it has."""
        ...

    def remove_access_key(self, name: str, access_key_id: str) -> bool:
        """Removes one access key of a user; False when it has no such key."""
        ...

    def add_role(self, role: Role) -> None:
        """Adds a role; raises UsageError for a name that is taken."""
        ...

    def remove_role(self, name: str) -> bool:
        """Removes a role, and with it every session of it; False when there is none."""
        ...

    def save_role_policies(self, name: str, policies: Sequence[str]) -> bool:
        """Replaces the identity policies of a role; False when there is none."""
        ...

    def roles(self) -> list[Role]:
        """Every role, by name."""
        ...

    def role(self, role_id: str) -> Role | None:
        """One role, by its id."""
        ...

    def close(self) -> None:
        """Lets go of the database."""
        ...
