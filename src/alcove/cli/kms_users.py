"""``alcove kms user`` and ``alcove kms role``: who may sign requests, and what they may do.

A secret access key is printed once, when it is made, and can be read back by nobody.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alcove.cli import output
from alcove.cli.attest_inputs import read_bytes
from alcove.cli.kms_store import add_store_flags, opened
from alcove.cli.parsers import Commands, command, command_group
from alcove.errors import UsageError

if TYPE_CHECKING:
    from alcove.kms.users import NewUser


def add_commands(commands: Commands) -> None:
    """Add ``user`` and ``role``."""
    inner = command_group(commands, "user", "users and their access keys")
    _add_making(inner)
    _add_keys(inner)
    inner = command_group(commands, "role", "roles that users may take on")
    _add_roles(inner)


def _add_making(group: Commands) -> None:
    parser = command(
        group,
        "add",
        add_user,
        "make a user and an access key; the secret is shown this once",
        "alcove kms user add app --policy app-policy.json --json > app-credentials.json",
    )
    parser.add_argument("name", help="the user's")
    _add_policy_flags(parser)
    _finish(parser)
    parser = command(group, "list", list_users, "list users, their access keys and how many policies they have")
    _finish(parser)
    parser = command(group, "remove", remove_user, "remove a user; its access keys stop working at once")
    parser.add_argument("name", help="the user's")
    _finish(parser, json=False)
    parser = command(
        group,
        "policy",
        user_policy,
        "show the identity policies of a user, or replace them; a running server follows at once",
        "alcove kms user policy app --policy app-policy.json",
    )
    parser.add_argument("name", help="the user's")
    _add_policy_flags(parser, none=True)
    _finish(parser, json=False)


def _add_keys(group: Commands) -> None:
    parser = command(
        group,
        "rotate",
        rotate_user,
        "make a new access key for a user, instead of the ones it has; the secret is shown this once",
        "alcove kms user rotate app --keep-old --json   # and `user revoke` when the new key is in use",
    )
    parser.add_argument("name", help="the user's")
    parser.add_argument("--keep-old", action="store_true", help="leave the old one valid; two at most")
    _finish(parser)
    parser = command(
        group,
        "revoke",
        revoke_key,
        "remove one access key of a user",
        "alcove kms user revoke app AKIA2345ABCDEFGHIJKL",
    )
    parser.add_argument("name", help="the user's")
    parser.add_argument("access_key_id", metavar="ACCESS-KEY-ID", help="as `user list` shows it")
    _finish(parser, json=False)


def _add_roles(group: Commands) -> None:
    parser = command(
        group,
        "add",
        add_role,
        "make a role that some users may take on with AssumeRole",
        "alcove kms role add deploy --trust alice --trust bob --policy deploy.json",
    )
    parser.add_argument("name", help="the role's")
    parser.add_argument("--trust", action="append", required=True, metavar="USER", help="who may (again for more)")
    _add_policy_flags(parser)
    _finish(parser)
    parser = command(group, "list", list_roles, "list roles and whom they trust")
    _finish(parser)
    parser = command(group, "remove", remove_role, "remove a role; its sessions end at once")
    parser.add_argument("name", help="the role's")
    _finish(parser, json=False)
    parser = command(group, "policy", role_policy, "show the identity policies of a role, or replace them")
    parser.add_argument("name", help="the role's")
    _add_policy_flags(parser, none=True)
    _finish(parser, json=False)


def _add_policy_flags(parser: argparse.ArgumentParser, *, none: bool = False) -> None:
    parser.add_argument("--admin", action="store_true", help="may do everything that key policies delegate")
    parser.add_argument(
        "--policy", "--file", action="append", default=[], type=Path, metavar="FILE",
        help="an identity policy in JSON (again for more)",
    )  # fmt: skip
    if none:
        parser.add_argument("--none", action="store_true", help="take all of them away")


def _finish(parser: argparse.ArgumentParser, *, json: bool = True) -> None:
    if json:
        parser.add_argument("--json", action="store_true", help="for programs")
    add_store_flags(parser)


def add_user(arguments: argparse.Namespace) -> None:
    """Make a user and print its access key, the only time that it is shown."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS

    policies = _policies(arguments)
    users.check_user(arguments.name, policies)  # before a store is made for it
    with opened(arguments, create=True) as store:
        _show_key(arguments, users.add_user(store, arguments.name, admin=arguments.admin, policies=policies))


def rotate_user(arguments: argparse.Namespace) -> None:
    """Make another access key."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS

    with opened(arguments) as store:
        _show_key(arguments, users.rotate_user(store, arguments.name, keep_old=arguments.keep_old))


def list_users(arguments: argparse.Namespace) -> None:
    """List users."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS

    with opened(arguments) as store:
        _show_list(arguments, users.list_users(store), "UserName", "AccessKeyIds")


def remove_user(arguments: argparse.Namespace) -> None:
    """Remove a user."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS

    with opened(arguments) as store:
        users.remove_user(store, arguments.name)
    output.say(f"removed {arguments.name}")


def revoke_key(arguments: argparse.Namespace) -> None:
    """Remove one access key."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS

    with opened(arguments) as store:
        users.revoke_key(store, arguments.name, arguments.access_key_id)
    output.say(f"revoked {arguments.access_key_id}")


def user_policy(arguments: argparse.Namespace) -> None:
    """Show or replace the policies of a user."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS

    _policy(arguments, users.user_policies, users.set_user_policies)


def role_policy(arguments: argparse.Namespace) -> None:
    """Show or replace the policies of a role."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS

    _policy(arguments, users.role_policies, users.set_role_policies)


def add_role(arguments: argparse.Namespace) -> None:
    """Make a role."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS

    policies = _policies(arguments)
    with opened(arguments) as store:
        arn = users.add_role(store, arguments.name, arguments.trust, admin=arguments.admin, policies=policies)
    if arguments.json:
        output.result({"RoleArn": arn})
    else:
        output.text(f"RoleArn: {arn}")


def list_roles(arguments: argparse.Namespace) -> None:
    """List roles."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS

    with opened(arguments) as store:
        _show_list(arguments, users.list_roles(store), "RoleName", "Trusts")


def remove_role(arguments: argparse.Namespace) -> None:
    """Remove a role."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS

    with opened(arguments) as store:
        users.remove_role(store, arguments.name)
    output.say(f"removed {arguments.name}")


def _policy(arguments: argparse.Namespace, show: Any, change: Any) -> None:
    if arguments.none and (arguments.admin or arguments.policy):
        raise UsageError("--none goes with no other policy")
    policies = _policies(arguments)
    with opened(arguments) as store:
        if arguments.none or arguments.admin or policies:
            change(store, arguments.name, admin=arguments.admin, policies=policies)
            output.say(f"{arguments.name} has {len(policies) + arguments.admin} identity policies now")
        else:
            output.result(show(store, arguments.name))


def _policies(arguments: argparse.Namespace) -> list[str]:
    """The texts of the files; read before anything is opened or made."""
    try:
        return [read_bytes(path).decode() for path in arguments.policy]
    except UnicodeDecodeError:
        raise UsageError("a policy is JSON, in UTF-8") from None


def _show_key(arguments: argparse.Namespace, user: NewUser) -> None:
    if arguments.json:
        output.result(user.to_json())
        return
    for name, value in user.to_json().items():
        output.text(f"{name}: {value}")


def _show_list(arguments: argparse.Namespace, rows: list[dict[str, object]], name: str, names: str) -> None:
    if arguments.json:
        output.result(rows)
        return
    width = max((len(str(row[name])) for row in rows), default=0)
    for row in rows:
        found = row[names]
        listed = " ".join(map(str, found)) if isinstance(found, list) else ""
        rights = "admin" if row["Admin"] else f"{row['Policies']} policies"
        output.text(f"{row[name]!s:{width}}  {rights:10}  {listed}")
