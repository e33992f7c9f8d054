"""What a KMS keeps: keys, their material, aliases, grants, users (kms.md §27).

Core: the Protocol between the service and a database, and the records that cross it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from alcove.kms.keys import Key, Material


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


@dataclass(frozen=True, slots=True)
class Alias:
    """A second name of a key, in its Region; `name` starts with ``alias/``."""

    region: str
    name: str
    key_id: str
    created: float
    updated: float


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant on one key (kms.md §17).

    Attributes:
        grant_id: 64 hex digits.
        grantee: ARN of who may use it.
        grantee_id: Its unique id when it is a user or a role, or its role's when it is a session, so that who is made
            anew under the old name is another one.
        retiring: ARN of who may retire it, or empty.
        retiring_id: As `grantee_id`.
        constraints: ``EncryptionContextEquals`` or ``EncryptionContextSubset`` with their pairs.
    """

    grant_id: str
    region: str
    key_id: str
    created: float
    grantee: str
    operations: tuple[str, ...]
    name: str | None = None
    grantee_id: str = ""
    retiring: str = ""
    retiring_id: str = ""
    constraints: Mapping[str, Any] | None = None


class Usage(NamedTuple):
    """The last use of a key, with the ids under which the audit log and the answer have it."""

    region: str
    key_id: str
    operation: str
    at: float
    event_id: str
    request_id: str


class KeyStore(Protocol):
    """One database. Everything that returns has happened durably."""

    @property
    def account(self) -> str:
        """The account id that the store was made for, 12 digits."""
        ...

    @property
    def shared(self) -> bool:
        """Whether servers on several machines may have it open."""
        ...

    def derive(self, label: str) -> bytes:
        """A 32-byte secret that all processes of this store share."""
        ...

    def secret(self, name: str) -> bytes:
        """A 32-byte secret that all processes of this store share, and that outlives its root keys."""
        ...

    def save_note(self, name: str, text: str) -> None:
        """Remembers a text that is no secret."""
        ...

    def notes(self, prefix: str) -> list[str]:
        """The names of the texts that are remembered under names that begin so, in order."""
        ...

    def note(self, name: str) -> str | None:
        """A text that was remembered."""
        ...

    def look(self) -> None:
        """From here to `leave`, reads may show one version of the database; one's own writes are seen in any case."""
        ...

    def leave(self) -> None:
        """The end of what `look` began."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """All that happens within happens or does not; transactions may be nested, and the outermost decides."""
        ...

    def create_key(self, key: Key) -> None:
        """Adds a key, without material."""
        ...

    def save_key(self, key: Key) -> None:
        """Writes a key that is there."""
        ...

    def key(self, region: str, key_id: str) -> Key | None:
        """One key."""
        ...

    def keys(self, region: str, after: str, limit: int) -> list[Key]:
        """Keys of a Region in the order of their ids, from the first one greater than `after`."""
        ...

    def keys_naming(self, name: str) -> list[Key]:
        """The keys, in every Region, whose policy may have this text in it, and perhaps others."""
        ...

    def family(self, key_id: str) -> list[Key]:
        """The keys of this id in every Region; one, unless it is a multi-Region key."""
        ...

    def due(self, now: float) -> list[Key]:
        """Keys of which material has expired, whose rotation is due, or that wait for their replicas to go."""
        ...

    def save_material(self, key: Key, material: Material, secret: bytes | None) -> None:
        """Writes what is known of a material with its secret; without one, the secret is erased."""
        ...

    def mark_material(self, key: Key, material: Material) -> None:
        """Writes what is known of a material, and leaves its secret alone."""
        ...

    def materials(self, key: Key) -> list[Material]:
        """What is known of a key's materials, the first one first."""
        ...

    def material(self, key: Key, material_id: str) -> bytes | None:
        """Unwrapped key material."""
        ...

    def private_key(self, key: Key, material_id: str) -> Any:
        """The parsed private key of a pair's material, or None; it is in memory for as long as the material is."""
        ...

    def save_usages(self, usages: Sequence[Usage]) -> None:
        """Writes the last uses of keys; keys that are gone are left out."""
        ...

    def usage(self, region: str, key_id: str) -> Usage | None:
        """The last use of a key that was saved."""
        ...

    def purge(self, now: float) -> list[tuple[str, str]]:
        """Erases keys whose deletion date has come; returns their Regions and ids."""
        ...

    def sweep(self) -> None:
        """Gets what was erased out of the database's files, as far as it can."""
        ...

    def save_alias(self, alias: Alias) -> None:
        """Adds an alias, or gives it another key."""
        ...

    def remove_alias(self, alias: Alias) -> None:
        """Removes an alias."""
        ...

    def alias(self, region: str, name: str) -> Alias | None:
        """One alias."""
        ...

    def aliases(self, region: str, after: str, limit: int, key_id: str | None = None) -> list[Alias]:
        """Aliases of a Region, or of one key in it, in the order of their names."""
        ...

    def add_grant(self, grant: Grant) -> None:
        """Adds a grant."""
        ...

    def remove_grant(self, grant: Grant) -> None:
        """Removes a grant."""
        ...

    def grant(self, grant_id: str) -> Grant | None:
        """One grant."""
        ...

    def grants(self, after: str, limit: int, **match: str) -> list[Grant]:
        """Grants in the order of their ids, of which each named attribute has this value."""
        ...

    def count_grants(self, key: Key) -> int:
        """How many grants a key has."""
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

    def check(self) -> None:
        """Returns when the database answers, and raises what it raises otherwise."""
        ...

    def close(self) -> None:
        """Lets go of the database."""
        ...
