"""KMS keys: names, states, metadata (kms.md §2.3, §2.4, §11).

Core: values in, values out; no key material here.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alcove.kms.errors import KmsError
from alcove.kms.specs import ENCRYPT, MEMBERS, SPECS, SYMMETRIC

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_MULTI_REGION = re.compile(r"mrk-[0-9a-f]{32}", re.ASCII)
_ARN = re.compile(r"arn:([a-z0-9-]+):kms:([a-z0-9-]+):([0-9]{12}):(key|alias)/(.+)", re.ASCII)
_ALIAS = re.compile(r"alias/[a-zA-Z0-9/_-]+", re.ASCII)


class KeyState(enum.Enum):
    """The states that keys of this service can be in."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"
    PENDING_DELETION = "PendingDeletion"


@dataclass(frozen=True, slots=True)
class Realm:
    """Where keys live: what every ARN has in common."""

    account: str
    region: str
    partition: str = "aws"

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
    """A key without its material; times are seconds since the epoch."""

    key_id: str
    created: float
    policy: str
    material_id: str
    description: str = ""
    state: KeyState = KeyState.ENABLED
    deletion_date: float | None = None
    spec: str = SYMMETRIC
    usage: str = ENCRYPT
    origin: str = "AWS_KMS"
    tags: Mapping[str, str] = field(default_factory=dict)

    def metadata(self, realm: Realm) -> dict[str, Any]:
        """KeyMetadata: exactly the members of §2.4."""
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
            "Origin": self.origin,
            "KeyManager": "CUSTOMER",
            "CustomerMasterKeySpec": self.spec,
            "KeySpec": self.spec,
            MEMBERS[self.usage]: list(SPECS[self.spec].algorithms[self.usage]),
            "MultiRegion": False,
            "CurrentKeyMaterialId": self.material_id if self.spec == SYMMETRIC else None,
        }


class Needs(enum.Enum):
    """The rows of §11: in which states an operation works."""

    ANY = "any"
    ENABLED = "enabled"
    NOT_DELETING = "not pending deletion"
    DELETING = "pending deletion"


def check_state(key: Key, needs: Needs, arn: str) -> None:
    """Refuses what the key's state does not allow.

    Raises:
        KmsError: DisabledException or KMSInvalidStateException.
    """
    deleting = key.state is KeyState.PENDING_DELETION
    if needs is Needs.DELETING and not deleting:
        raise KmsError("KMSInvalidStateException", f"{arn} is not pending deletion.")
    if needs in {Needs.ENABLED, Needs.NOT_DELETING} and deleting:
        raise KmsError("KMSInvalidStateException", f"{arn} is pending deletion.")
    if needs is Needs.ENABLED and key.state is KeyState.DISABLED:
        raise KmsError("DisabledException", f"{arn} is disabled.")


def parse_key_id(text: str, realm: Realm) -> str:
    """The bare key id of a KeyId parameter (§2.3).

    Raises:
        KmsError: NotFoundException in the words of §2.3. Another account's key answers AccessDenied elsewhere: it
            looks like any key that does not exist.
    """
    match = _ARN.fullmatch(text)
    if match and match[2] != realm.region:
        raise _not_found(f"Invalid arn {match[2]}")
    if match and (match[1], match[3]) != (realm.partition, realm.account):
        raise _not_found(f"Key '{text}' does not exist")
    name = f"alias/{match[5]}" if match and match[4] == "alias" else match[5] if match else text
    if _ALIAS.fullmatch(name):
        raise _not_found(f"Alias {realm.alias_arn(name)} is not found.")
    if not (_UUID.fullmatch(name) or _MULTI_REGION.fullmatch(name)):
        raise _not_found(f"Invalid keyId '{text}'")
    return name


def no_such_key(key_id: str, realm: Realm) -> KmsError:
    """A NotFoundException for a well-formed id."""
    return _not_found(f"Key '{realm.key_arn(key_id)}' does not exist")


def _not_found(message: str) -> KmsError:
    return KmsError("NotFoundException", message)
