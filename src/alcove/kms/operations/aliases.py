"""Aliases: second names of keys (kms.md §18).

Core: an authorized call and the tools in; the answer's members out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError
from alcove.kms.keys import Key, Needs, check_new_alias_name, check_state
from alcove.kms.operations.deliver import arn
from alcove.kms.operations.pages import page
from alcove.kms.specs import SPECS
from alcove.kms.store import Alias

MAX_ALIASES: Final = 50  # §9, per key


def create_alias(tools: Tools, call: Call) -> dict[str, Any]:
    """CreateAlias."""
    name = call.params["AliasName"]
    if tools.store.alias(tools.realm.region, name):
        raise KmsError("AlreadyExistsException", f"An alias with the name {tools.realm.alias_arn(name)} already exists")
    _check_room(tools, call.the_key)
    tools.store.save_alias(Alias(tools.realm.region, name, call.the_key.key_id, call.seconds, call.seconds))
    return {}


def update_alias(tools: Tools, call: Call) -> dict[str, Any]:
    """UpdateAlias: another key of the same kind."""
    alias, target = _alias(call), call.the_other
    if target.key_id != alias.key_id:
        _check_room(tools, target)
    tools.store.save_alias(replace(alias, key_id=target.key_id, updated=call.seconds))
    return {}


def delete_alias(tools: Tools, call: Call) -> dict[str, Any]:
    """DeleteAlias."""
    tools.store.remove_alias(_alias(call))
    return {}


def list_aliases(tools: Tools, call: Call) -> dict[str, Any]:
    """ListAliases: of the Region, or of one key, in pages."""
    region, key_id = tools.realm.region, call.key.key_id if call.key else None

    def fetch(after: str, limit: int) -> list[Alias]:
        return tools.store.aliases(region, after, limit, key_id)

    found, rest = page(tools, call, fetch=fetch, name=lambda alias: alias.name, default=50, most=100)
    entries = [
        {
            "AliasName": alias.name,
            "AliasArn": tools.realm.alias_arn(alias.name),
            "TargetKeyId": alias.key_id,
            "CreationDate": alias.created,
            "LastUpdatedDate": alias.updated,
        }
        for alias in found
    ]
    return {"Aliases": entries, **rest}


def check_new_name(tools: Tools, call: Call) -> None:
    """Refuses names that an alias cannot have."""
    del tools
    check_new_alias_name(call.params["AliasName"])


def check_new_target(tools: Tools, call: Call) -> None:
    """Refuses a target that is going, or of another kind or usage: callers of the alias would be surprised."""
    old, new = call.the_key, call.the_other
    check_state(new, Needs.NOT_DELETING, tools.realm)
    if (_kind(old), old.usage) != (_kind(new), new.usage):
        message = f"{arn(tools, call)} and {tools.realm.key_arn(new.key_id)} differ in key type or key usage."
        raise KmsError("KMSInvalidStateException", message)


def _kind(key: Key) -> tuple[bool, bool]:
    """Symmetric, asymmetric or HMAC."""
    return SPECS[key.spec].pair, key.spec.startswith("HMAC_")


def _check_room(tools: Tools, key: Key) -> None:
    if len(tools.store.aliases(key.region, "", MAX_ALIASES, key.key_id)) >= MAX_ALIASES:
        raise KmsError("LimitExceededException", f"A key has at most {MAX_ALIASES} aliases.")


def _alias(call: Call) -> Alias:
    if call.alias is None:
        raise RuntimeError(f"{call.operation} has no alias")
    return call.alias
