"""Users and roles of the KMS: who may sign requests, and what they may do (kms.md §8.3, §25).

An administrator has one identity policy that allows ``kms:*``. Everyone else has the policies they were given, or
none, and so what key policies give to their ARN directly.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from alcove.errors import UsageError
from alcove.kms.errors import KmsError
from alcove.kms.policy.bind import rename_principals
from alcove.kms.policy.document import PolicyKind, parse_policy
from alcove.kms.store import KeyStore, Role, User

ADMIN_POLICY: Final = json.dumps(
    {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*"}]}
)
MAX_ACCESS_KEYS: Final = 2  # IAM's quota: one in use, one that is coming or going
_NAME = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)  # IAM's rule for user and role names
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user, or an access key of one, just made; the secret is shown this once."""

    arn: str
    access_key_id: str
    secret_access_key: str

    def to_json(self) -> dict[str, str]:
        """The object that the command prints."""
        return {
            "UserArn": self.arn,
            "AccessKeyId": self.access_key_id,
            "SecretAccessKey": self.secret_access_key,
        }


def add_user(store: KeyStore, name: str, admin: bool = False, policies: Sequence[str] = ()) -> NewUser:
    """Adds a user with a fresh access key.

    Args:
        store: Where.
        name: IAM's rule for names.
        admin: Whether it may do everything that key policies delegate.
        policies: JSON texts of identity policies.

    Raises:
        UsageError: The name is taken or not a name, or a text is not an identity policy.
    """
    user = User(_identifier("AIDA"), _named("user", name), time.time(), _checked(admin=admin, policies=policies))
    access_key_id, secret = _credentials()
    store.add_user(user, access_key_id, secret)
    return NewUser(user_arn(store, name), access_key_id, secret)


def check_user(name: str, policies: Sequence[str]) -> None:
    """Refuses what `add_user` would refuse of any store.

    Raises:
        UsageError: Not a name, or a text is not an identity policy.
    """
    _named("user", name)
    _checked(admin=False, policies=policies)


def rotate_user(store: KeyStore, name: str, *, keep_old: bool = False) -> NewUser:
    """Gives a user a fresh access key, and takes the old ones away, unless they are kept until `revoke_key`.

    Raises:
        UsageError: There is no such user, or it has two access keys already.
    """
    access_key_id, secret = _credentials()
    store.add_access_key(name, access_key_id, secret, instead=not keep_old, limit=MAX_ACCESS_KEYS)
    return NewUser(user_arn(store, name), access_key_id, secret)


def revoke_key(store: KeyStore, name: str, access_key_id: str) -> None:
    """Takes one access key from a user; it stops working with the next request."""
    if not store.remove_access_key(name, access_key_id):
        raise UsageError(f"{name} has no access key {access_key_id}", hint="`alcove kms user list` shows them")


def list_users(store: KeyStore) -> list[dict[str, object]]:
    """Every user: ``UserArn``, ``UserName``, ``Admin``, ``AccessKeyIds``, ``Policies`` (how many)."""
    return [
        {
            "UserArn": user_arn(store, user.name),
            "UserName": user.name,
            "Admin": ADMIN_POLICY in user.policies,
            "AccessKeyIds": store.access_key_ids(user.name),
            "Policies": len(user.policies),
        }
        for user in store.users()
    ]


def remove_user(store: KeyStore, name: str) -> None:
    """Removes a user; its access key stops working with the next request.

    Raises:
        UsageError: There is no such user.
    """
    user = next((user for user in store.users() if user.name == name), None)
    if user is None:
        raise no_user(name)
    with store.transaction():
        _bind(store, {user_arn(store, name): user.user_id}, name)
        store.remove_user(name)


def user_policies(store: KeyStore, name: str) -> list[Any]:
    """The identity policies of a user, as JSON values."""
    for user in store.users():
        if user.name == name:
            return [json.loads(text) for text in user.policies]
    raise no_user(name)


def set_user_policies(store: KeyStore, name: str, *, admin: bool, policies: Sequence[str]) -> None:
    """Replaces the identity policies of a user; effective with the next request."""
    if not store.save_user_policies(name, _checked(admin=admin, policies=policies)):
        raise no_user(name)


def add_role(store: KeyStore, name: str, trust: Sequence[str], *, admin: bool, policies: Sequence[str] = ()) -> str:
    """Adds a role that these users may take on; returns its ARN.

    A user is trusted by its id: one that is removed and made again under the same name is a stranger.

    Raises:
        UsageError: The name is taken or not a name, a user does not exist, or a text is not an identity policy.
    """
    ids = {user.name: user.user_id for user in store.users()}
    unknown = [user for user in trust if user not in ids]
    if unknown:
        raise no_user(unknown[0])
    trusted = tuple(ids[user] for user in dict.fromkeys(trust))
    checked = _checked(admin=admin, policies=policies)
    store.add_role(Role(_identifier("AROA"), _named("role", name), time.time(), checked, trusted))
    return role_arn(store, name)


def list_roles(store: KeyStore) -> list[dict[str, object]]:
    """Every role: ``RoleArn``, ``RoleName``, ``Admin``, ``Trusts`` (user names), ``Policies`` (how many)."""
    names = {user.user_id: user.name for user in store.users()}
    return [
        {
            "RoleArn": role_arn(store, role.name),
            "RoleName": role.name,
            "Admin": ADMIN_POLICY in role.policies,
            "Trusts": sorted(names[user_id] for user_id in role.trusted),
            "Policies": len(role.policies),
        }
        for role in store.roles()
    ]


def remove_role(store: KeyStore, name: str) -> None:
    """Removes a role; its sessions end with the next request."""
    role = next((role for role in store.roles() if role.name == name), None)
    if role is None:
        raise _no_role(name)
    with store.transaction():
        _bind(store, {role_arn(store, name): role.role_id}, name, sessions=f":assumed-role/{name}/")
        store.remove_role(name)


def role_policies(store: KeyStore, name: str) -> list[Any]:
    """The identity policies of a role, as JSON values."""
    for role in store.roles():
        if role.name == name:
            return [json.loads(text) for text in role.policies]
    raise _no_role(name)


def set_role_policies(store: KeyStore, name: str, *, admin: bool, policies: Sequence[str]) -> None:
    """Replaces the identity policies of a role; effective with the next request."""
    if not store.save_role_policies(name, _checked(admin=admin, policies=policies)):
        raise _no_role(name)


def user_arn(store: KeyStore, name: str) -> str:
    """The ARN of a user."""
    return f"arn:aws:iam::{store.account}:user/{name}"


def role_arn(store: KeyStore, name: str) -> str:
    """The ARN of a role."""
    return f"arn:aws:iam::{store.account}:role/{name}"


def no_user(name: str) -> UsageError:
    """What is said of a user that does not exist."""
    return UsageError(f"there is no user {name}", hint="`alcove kms user list` shows who there is")


def _no_role(name: str) -> UsageError:
    return UsageError(f"there is no role {name}", hint="`alcove kms role list` shows what there is")


def _bind(store: KeyStore, ids: Mapping[str, str], name: str, sessions: str = "") -> None:
    """Puts unique ids in the place of ARNs in key policies, so that nobody who has the name later is meant."""

    def rename(principal: str) -> str:
        prefix, is_session, session = principal.partition(sessions) if sessions else (principal, "", "")
        if is_session and prefix.endswith(f":{store.account}"):
            return f"{next(iter(ids.values()))}:{session}"
        return ids.get(principal, principal)

    for key in store.keys_naming(name):
        policy = rename_principals(key.policy, rename)
        if policy != key.policy:
            store.save_key(replace(key, policy=policy))


def _checked(*, admin: bool, policies: Sequence[str]) -> tuple[str, ...]:
    for number, text in enumerate(policies, 1):
        try:
            parse_policy(text, PolicyKind.IDENTITY)
        except KmsError as error:
            which = "the policy" if len(policies) == 1 else f"policy {number}"
            raise UsageError(f"{which} cannot be used: {error.message}") from error
    return ((ADMIN_POLICY,) if admin else ()) + tuple(policies)


def _named(what: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a {what} name", hint="use up to 64 letters, digits and _+=,.@-")
    return name


def _credentials() -> tuple[str, str]:
    return _identifier("AKIA"), base64.b64encode(secrets.token_bytes(30)).decode()


def _identifier(prefix: str) -> str:
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(16))
