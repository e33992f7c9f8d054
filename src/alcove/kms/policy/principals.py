"""Who a statement speaks of, and whether the caller is that (kms.md §8.3).

Core: names and identities in; matches out.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Any, Final


class Kind(enum.Enum):
    """The forms of a principal."""

    ANYONE = "*"
    ACCOUNT = "account"
    USER = "user"
    ROLE = "role"
    SESSION = "assumed-role"
    FEDERATED_USER = "federated-user"
    SERVICE = "service"
    FEDERATED = "federated"
    GONE = "removed"


class Reach(enum.IntEnum):
    """How a principal names the caller: not at all, through its account, or itself."""

    NONE = 0
    ACCOUNT = 1
    DIRECT = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated identity.

    Attributes:
        arn: User ARN, session ARN, or the account's root ARN.
        account: 12 digits.
        user_id: The unique internal id (aws:userid).
        name: User name, or None for what is not a user.
        role_arn: The role of a session, or None.
        issued: When the credentials of a session were made, seconds since the epoch, or None.
    """

    arn: str
    account: str
    user_id: str
    name: str | None = None
    role_arn: str | None = None
    issued: int | None = None

    @property
    def is_root(self) -> bool:
        """Whether this is the account itself."""
        return self.arn.endswith(":root")


@dataclass(frozen=True, slots=True)
class Principal:
    """One principal of a policy; `value` is an ARN, an account id, or a service's name."""

    kind: Kind
    value: str

    def reaches(self, caller: Caller) -> Reach:
        """How this principal names the caller."""
        match self.kind:
            case Kind.ANYONE:
                return Reach.DIRECT
            case Kind.ACCOUNT if self.value == caller.account:
                return Reach.DIRECT if caller.is_root else Reach.ACCOUNT
            case Kind.USER | Kind.SESSION | Kind.FEDERATED_USER if self.value == caller.arn:
                return Reach.DIRECT
            case Kind.ROLE if self.value == caller.role_arn:
                return Reach.DIRECT
        return Reach.NONE


_ACCOUNT = re.compile(r"(?:arn:[a-z0-9-]+:iam::)?([0-9]{12})(:root)?", re.ASCII)
_UNIQUE_ID = re.compile(r"(AIDA|AROA)[A-Z2-7]{16}(:[\w+=,.@-]+)?", re.ASCII)  # see `bind`
_ARNS: Final = [
    (Kind.USER, re.compile(r"arn:[a-z0-9-]+:iam::[0-9]{12}:user/[\w+=,.@/-]+", re.ASCII)),
    (Kind.ROLE, re.compile(r"arn:[a-z0-9-]+:iam::[0-9]{12}:role/[\w+=,.@/-]+", re.ASCII)),
    (Kind.SESSION, re.compile(r"arn:[a-z0-9-]+:sts::[0-9]{12}:assumed-role/[\w+=,.@-]+/[\w+=,.@-]+", re.ASCII)),
    (Kind.FEDERATED_USER, re.compile(r"arn:[a-z0-9-]+:sts::[0-9]{12}:federated-user/[\w+=,.@-]+", re.ASCII)),
]


def parse_principals(value: Any) -> tuple[Principal, ...]:
    """The principals of a ``Principal`` or ``NotPrincipal`` element.

    Raises:
        ValueError: Not a form of §8.3, empty, or with a wildcard inside an ARN.
    """
    if value == "*":
        return (Principal(Kind.ANYONE, "*"),)
    if not isinstance(value, dict) or not value:
        raise ValueError('a principal is "*" or an object')
    found = [_parse_one(kind, name) for kind, names in value.items() for name in _strings(names)]
    if not found:
        raise ValueError("a principal is empty")
    return tuple(found)


def _strings(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise ValueError("a principal is a string or a list of strings")
    return values


def _parse_one(kind: str, name: str) -> Principal:
    if kind in {"Service", "Federated"} and "*" not in name:
        return Principal(Kind.SERVICE if kind == "Service" else Kind.FEDERATED, name)
    if kind != "AWS":
        raise ValueError(f"principals of kind {kind!r} have no meaning here")
    if name == "*":
        return Principal(Kind.ANYONE, "*")
    account = _ACCOUNT.fullmatch(name)
    if account and bool(account[2]) == name.startswith("arn:"):
        return Principal(Kind.ACCOUNT, account[1])
    if _UNIQUE_ID.fullmatch(name):
        return Principal(Kind.GONE, name)
    for form, pattern in _ARNS:
        if pattern.fullmatch(name):
            return Principal(form, name)
    raise ValueError(f"{name!r} is not the ARN of a principal")
