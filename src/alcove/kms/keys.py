"""KMS keys: names, states, metadata, and what is known of their material (kms.md §2.3, §2.4, §11, §14 to §16).

Core: values in, values out; no key material here.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from alcove.kms.errors import KmsError, validation
from alcove.kms.specs import ENCRYPT, MEMBERS, SPECS, SYMMETRIC

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_MULTI_REGION = re.compile(r"mrk-[0-9a-f]{32}", re.ASCII)
_ARN = re.compile(r"arn:([a-z0-9-]+):kms:([a-z0-9-]+):([0-9]{12}):(key|alias)/(.+)", re.ASCII)
_ALIAS = re.compile(r"alias/[a-zA-Z0-9/_-]+", re.ASCII)
RESERVED_ALIASES: Final = "alias/aws/"
OURS: Final = "AWS_KMS"
EXTERNAL: Final = "EXTERNAL"
PRIMARY: Final = "PRIMARY"
REPLICA: Final = "REPLICA"


class KeyState(enum.Enum):
    """The states that keys of this service can be in."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"
    PENDING_DELETION = "PendingDeletion"
    PENDING_REPLICA_DELETION = "PendingReplicaDeletion"
    PENDING_IMPORT = "PendingImport"


@dataclass(frozen=True, slots=True)
class Realm:
    """Where keys live: what every ARN has in common."""

    account: str
    region: str
    partition: str = "aws"

    def at(self, region: str) -> Realm:
        """The same in another Region."""
        return self if region == self.region else replace(self, region=region)

    def key_arn(self, key_id: str) -> str:
        """The ARN of a key."""
        return f"arn:{self.partition}:kms:{self.region}:{self.account}:key/{key_id}"

    def alias_arn(self, name: str) -> str:
        """The ARN of an alias; the name starts with ``alias/``."""
        return f"arn:{self.partition}:kms:{self.region}:{self.account}:{name}"

    @property
    def root_arn(self) -> str:
        """The ARN of the account's root."""
        return f"arn:{self.partition}:iam::{self.account}:root"

    def user_arn(self, name: str) -> str:
        """The ARN of a user."""
        return f"arn:{self.partition}:iam::{self.account}:user/{name}"

    def role_arn(self, name: str) -> str:
        """The ARN of a role."""
        return f"arn:{self.partition}:iam::{self.account}:role/{name}"

    def session_arn(self, role: str, session: str) -> str:
        """The ARN of a role's session."""
        return f"arn:{self.partition}:sts::{self.account}:assumed-role/{role}/{session}"


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its material; times are seconds since the epoch.

    Attributes:
        material_id: The current material; empty before the first import.
        region: The Region that it is in; `key_id` alone names a multi-Region key everywhere.
        window_days: How long deletion waits once the replicas are gone (PendingReplicaDeletion).
        rotation_days: Days between automatic rotations, None when they are off.
        next_rotation: When the next one is due.
        present: Whether all of its material is there; imported material can be deleted or expire.
        valid_to: When the first of its imported material expires.
        role: PRIMARY or REPLICA of a multi-Region key, or empty.
    """

    key_id: str
    created: float
    policy: str
    material_id: str
    region: str
    description: str = ""
    state: KeyState = KeyState.ENABLED
    deletion_date: float | None = None
    window_days: int | None = None
    spec: str = SYMMETRIC
    usage: str = ENCRYPT
    origin: str = OURS
    tags: Mapping[str, str] = field(default_factory=dict)
    rotation_days: int | None = None
    next_rotation: float | None = None
    present: bool = True
    valid_to: float | None = None
    role: str = ""

    @property
    def deleting(self) -> bool:
        """Whether it waits for its deletion."""
        return self.state is KeyState.PENDING_DELETION or self.state is KeyState.PENDING_REPLICA_DELETION

    def metadata(self, realm: Realm, family: Sequence[Key] = ()) -> dict[str, Any]:
        """KeyMetadata: exactly the members of §2.4; `family` are all keys of this id, in every Region."""
        imported = self.origin == EXTERNAL and self.present
        expires = "KEY_MATERIAL_DOES_NOT_EXPIRE" if self.valid_to is None else "KEY_MATERIAL_EXPIRES"
        return {
            "AWSAccountId": realm.account,
            "KeyId": self.key_id,
            "Arn": realm.key_arn(self.key_id),
            "CreationDate": self.created,
            "Enabled": self.state is KeyState.ENABLED,
            "Description": self.description,
            "KeyUsage": self.usage,
            "KeyState": self.state.value,
            "DeletionDate": self.deletion_date,
            "PendingDeletionWindowInDays": self.window_days,
            "Origin": self.origin,
            "ExpirationModel": expires if imported else None,
            "ValidTo": self.valid_to if imported else None,
            "KeyManager": "CUSTOMER",
            "CustomerMasterKeySpec": self.spec,
            "KeySpec": self.spec,
            MEMBERS[self.usage]: list(SPECS[self.spec].algorithms[self.usage]),
            "MultiRegion": bool(self.role),
            "MultiRegionConfiguration": self._regions(realm, family) if self.role else None,
            "CurrentKeyMaterialId": (self.material_id or None) if self.spec == SYMMETRIC else None,
        }

    def _regions(self, realm: Realm, family: Sequence[Key]) -> dict[str, Any]:
        """MultiRegionConfiguration."""
        places = [
            (key.role, {"Arn": realm.at(key.region).key_arn(key.key_id), "Region": key.region})
            for key in family or (self,)
        ]
        return {
            "MultiRegionKeyType": self.role,
            "PrimaryKey": next(place for role, place in places if role == PRIMARY),
            "ReplicaKeys": [place for role, place in places if role == REPLICA],
        }


@dataclass(frozen=True, slots=True)
class Material:
    """What is known of one of a key's materials; the secret itself stays in the store.

    Attributes:
        number: Counts a key's materials in the order in which they came, from 0.
        present: Whether the secret is there.
        pending: Imported, and waiting for a rotation to become current.
        rotated: When a rotation made it current; None for the first one.
        rotation_type: AUTOMATIC or ON_DEMAND.
        valid_to: When it expires.
    """

    material_id: str
    number: int = 0
    present: bool = True
    pending: bool = False
    rotated: float | None = None
    rotation_type: str | None = None
    description: str | None = None
    valid_to: float | None = None


class Needs(enum.Enum):
    """The rows of §11: in which states an operation works."""

    ANY = "any"
    ENABLED = "enabled"
    SETTLED = "not pending deletion or import"
    NOT_DELETING = "not pending deletion"
    DELETING = "pending deletion"


def check_state(key: Key, needs: Needs, realm: Realm) -> None:
    """Refuses what the key's state does not allow.

    Raises:
        KmsError: DisabledException or KMSInvalidStateException.
    """
    if needs is Needs.ANY or (needs is Needs.ENABLED and key.state is KeyState.ENABLED):
        return
    arn = realm.at(key.region).key_arn(key.key_id)
    if needs is Needs.DELETING and not key.deleting:
        raise KmsError("KMSInvalidStateException", f"{arn} is not pending deletion.")
    if needs in {Needs.ENABLED, Needs.SETTLED, Needs.NOT_DELETING} and key.deleting:
        raise KmsError("KMSInvalidStateException", f"{arn} is pending deletion.")
    if needs in {Needs.ENABLED, Needs.SETTLED} and key.state is KeyState.PENDING_IMPORT:
        raise KmsError("KMSInvalidStateException", f"{arn} is pending import.")
    if needs is Needs.ENABLED and key.state is KeyState.DISABLED:
        raise KmsError("DisabledException", f"{arn} is disabled.")


def parse_key_id(text: str, realm: Realm, *, aliases: bool = True) -> str:
    """What a KeyId parameter names (§2.3): a bare key id, or an alias name, which starts with ``alias/``.

    Args:
        text: The parameter.
        realm: Of the request.
        aliases: Whether an alias may stand there.

    Raises:
        KmsError: NotFoundException in the words of §2.3.
    """
    if _UUID.fullmatch(text):  # as most are
        return text
    match = _ARN.fullmatch(text)
    if match and match[2] != realm.region:
        raise not_found(f"Invalid arn {match[2]}")
    if match and (match[1], match[3]) != (realm.partition, realm.account):
        raise not_found(f"Key '{text}' does not exist")
    name = f"alias/{match[5]}" if match and match[4] == "alias" else match[5] if match else text
    if not ((aliases and _ALIAS.fullmatch(name)) or _UUID.fullmatch(name) or _MULTI_REGION.fullmatch(name)):
        raise not_found(f"Invalid keyId '{text}'")
    return name


def is_foreign(text: str, realm: Realm) -> bool:
    """Whether a KeyId parameter names what is of another account, in the Region of the request."""
    match = _ARN.fullmatch(text) if text.startswith("arn:") else None
    return match is not None and match[2] == realm.region and match[3] != realm.account


def check_alias_name(name: str) -> None:
    """Refuses an alias name without its prefix (§18).

    Raises:
        KmsError: ValidationException in the recorded words.
    """
    if not name.startswith("alias/"):
        guide = "https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html"
        raise validation(f'Alias must start with the prefix "alias/". Please see {guide}')


def check_new_alias_name(name: str) -> None:
    """Refuses an alias name that cannot be made (§18): other characters, or one that AWS keeps for its own keys.

    Raises:
        KmsError: InvalidAliasNameException.
    """
    if not _ALIAS.fullmatch(name):
        raise KmsError("InvalidAliasNameException", "An alias name has letters, digits and / _ - only.")
    if name.startswith(RESERVED_ALIASES):
        raise KmsError("InvalidAliasNameException", f"Aliases beginning with {RESERVED_ALIASES} are reserved")


def no_such_alias(name: str, realm: Realm) -> KmsError:
    """A NotFoundException for an alias."""
    return not_found(f"Alias {realm.alias_arn(name)} is not found.")


def no_such_key(key_id: str, realm: Realm) -> KmsError:
    """A NotFoundException for a well-formed id."""
    return not_found(f"Key '{realm.key_arn(key_id)}' does not exist")


def not_found(message: str) -> KmsError:
    """A NotFoundException."""
    return KmsError("NotFoundException", message)
