"""Who a container's process is: the USER of an image, looked up in the image's own /etc/passwd and /etc/group.

Core: texts in, numbers out.

The rules are those of container runtimes (opencontainers/runc, libcontainer/user): `user[:group]`, each a name or a
number; a number needs no entry; the first entry that fits counts; the groups that list the user's name are
supplementary, unless a group is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from alcove.errors import ImageFormatError

MAX_ID: Final = (1 << 31) - 1  # runc, libcontainer/user: minID, maxID
_NUMBER: Final = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class User:
    """A user: ids, supplementary groups (the primary one included, as Docker has it) and home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def look_up(user: str, passwd: str, group: str) -> User:
    """The user that a USER instruction means.

    Args:
        user: `user`, `user:group` or nothing, which is root.
        passwd: Content of the image's /etc/passwd.
        group: Content of its /etc/group.

    Raises:
        ImageFormatError: E48 for a name without an entry, and for a number out of range.
    """
    who, _, which = user.partition(":")
    account = _account(who, list(_accounts(passwd)))
    groups = list(_groups(group))
    if which:
        gid = _named_group(which, groups)
        return User(account.uid, gid, (gid,), account.home)
    others = [entry.gid for entry in groups if account.name and account.name in entry.members]
    return User(account.uid, account.gid, tuple(dict.fromkeys([account.gid, *others])), account.home)


def _account(who: str, accounts: list[_Account]) -> _Account:
    uid = _number(who, "USER") if _NUMBER.fullmatch(who) else None
    for account in accounts:
        if account.uid == uid if uid is not None else account.name == (who or "root"):
            return account
    if uid is None and who not in {"", "root"}:
        raise _missing(who, "user", "/etc/passwd")
    return _Account("", uid or 0, 0, "/")


def _named_group(which: str, groups: list[_Group]) -> int:
    gid = _number(which, "USER") if _NUMBER.fullmatch(which) else None
    for group in groups:
        if gid is None and group.name == which:
            return group.gid
    if gid is None:
        raise _missing(which, "group", "/etc/group")
    return gid


def _missing(name: str, kind: str, file: str) -> ImageFormatError:
    hint = f"add the {kind} to the image, or give its number"
    return ImageFormatError(f"the image's {file} has no {kind} {name!r}", field="USER", hint=hint, code="E48")


def _accounts(passwd: str) -> Iterator[_Account]:
    """Entries `name:password:uid:gid:comment:home:shell`; lines that are none are passed over."""
    for line in passwd.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= 6 and fields[2].isdecimal() and fields[3].isdecimal():
            yield _Account(fields[0], _number(fields[2], "/etc/passwd"), _number(fields[3], "/etc/passwd"), fields[5])


def _groups(group: str) -> Iterator[_Group]:
    """Entries `name:password:gid:members`."""
    for line in group.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= 3 and fields[2].isdecimal():
            members = fields[3].split(",") if len(fields) > 3 else []
            yield _Group(fields[0], _number(fields[2], "/etc/group"), tuple(members))


def _number(text: str, field: str) -> int:
    if len(text) > 11 or not 0 <= int(text) <= MAX_ID:
        raise ImageFormatError(f"{text[:20]} is not between 0 and {MAX_ID}", field=field, code="E48")
    return int(text)
