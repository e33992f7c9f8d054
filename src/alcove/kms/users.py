"""Users of the KMS: who may sign requests (kms.md §8.3, §25).

An administrator has one identity policy that allows ``kms:*``. Everyone else has none, and so what key policies give
to the user's ARN directly.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from dataclasses import dataclass
from typing import Final

from alcove.errors import UsageError
from alcove.kms.store import KeyStore, User

ADMIN_POLICY: Final = json.dumps(
    {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*"}]}
)
_NAME = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)  # IAM's rule for user names
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user just made; the secret is shown this once."""

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


def add_user(store: KeyStore, name: str, admin: bool = False) -> NewUser:
    """Adds a user with a fresh access key.

    Raises:
        UsageError: The name is taken or not a name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a user name", hint="use up to 64 letters, digits and _+=,.@-")
    user = User(_identifier("AIDA"), name, time.time(), (ADMIN_POLICY,) if admin else ())
    access_key_id, secret = _identifier("AKIA"), base64.b64encode(secrets.token_bytes(30)).decode()
    store.add_user(user, access_key_id, secret)
    return NewUser(f"arn:aws:iam::{store.account}:user/{name}", access_key_id, secret)


def list_users(store: KeyStore) -> list[dict[str, object]]:
    """Every user: ``UserArn``, ``UserName``, ``Admin``."""
    return [
        {
            "UserArn": f"arn:aws:iam::{store.account}:user/{user.name}",
            "UserName": user.name,
            "Admin": ADMIN_POLICY in user.policies,
        }
        for user in store.users()
    ]


def remove_user(store: KeyStore, name: str) -> None:
    """Removes a user; its access key stops working with the next request.

    Raises:
        UsageError: There is no such user.
    """
    if not store.remove_user(name):
        raise UsageError(f"there is no user {name}")


def _identifier(prefix: str) -> str:
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(16))
