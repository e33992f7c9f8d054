"""Which keys, aliases and grants a request is about (kms.md §2.3, §13.2, §17, §18).

Core: an operation's source and its parameters in; the call with what they name out. Nothing here decides who may know.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from alcove.kms import blob
from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, validation
from alcove.kms.keys import Key, check_alias_name, is_foreign, no_such_alias, no_such_key, not_found, parse_key_id
from alcove.kms.store import Alias, Grant
from alcove.kms.tokens import open_token
from alcove.kms.upkeep import load

IGNORE_CIPHERTEXT: Final = "IGNORE_CIPHERTEXT"
_NO_CIPHERTEXT = (
    "1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null"
)
_NO_USABLE_KEY = (
    "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are "
    "not allowed to access."
)


class Source(enum.Enum):
    """Where an operation's keys come from."""

    NONE = "no key"
    ANY_NAME = "KeyId, which may be an alias"
    ID = "KeyId"
    PERHAPS = "KeyId, when it is there"
    BLOB = "KeyId, or the ciphertext"
    TWO_KEYS = "SourceKeyId or the ciphertext, and DestinationKeyId"
    NEW_ALIAS = "TargetKeyId"
    ALIAS = "AliasName"
    MOVED_ALIAS = "AliasName and TargetKeyId"
    GRANT = "GrantToken, or KeyId and GrantId"
    NEW_PRIMARY = "KeyId, and the same in PrimaryRegion"


def resolve(source: Source, tools: Tools, call: Call) -> Call:
    """The call with its keys, aliases and grant.

    Raises:
        KmsError: There is no such thing, in the words of §2.3.
    """
    for token in call.params.get("GrantTokens", ()):
        _of_token(tools, token)
    return _SOURCES[source](tools, call)


def _none(tools: Tools, call: Call) -> Call:
    del tools
    return call


def _named(member: str, *, aliases: bool = True) -> Callable[[Tools, Call], Call]:
    def find(tools: Tools, call: Call) -> Call:
        key, alias = _look(tools, call, call.params[member], aliases=aliases)
        return call.about(key, alias)

    return find


def _perhaps(tools: Tools, call: Call) -> Call:
    return _BY_ID(tools, call) if "KeyId" in call.params else call


def _blob(member: str) -> Callable[[Tools, Call], Call]:
    by_name = _named(member)

    def find(tools: Tools, call: Call) -> Call:
        ignored = ignores_ciphertext(call)
        if "CiphertextBlob" not in call.params and not ignored:
            raise validation(_NO_CIPHERTEXT)
        if member in call.params:
            return by_name(tools, call)
        if ignored:
            raise validation(f"{member} is required with {IGNORE_CIPHERTEXT}")
        return call.about(_key_of_blob(tools, call), call.alias)

    return find


def _two_keys(tools: Tools, call: Call) -> Call:
    call = _SOURCE_BLOB(tools, call)
    other, alias = _look(tools, call, call.params["DestinationKeyId"])
    return replace(call, other=other, other_alias=alias)


def _new_alias(tools: Tools, call: Call) -> Call:
    call = _TARGET(tools, call)
    return replace(call, alias=_named_alias(tools, call, call.the_key.key_id))


def _alias(tools: Tools, call: Call) -> Call:
    """The alias that AliasName names, and its key."""
    alias = _named_alias(tools, call, "")
    if not alias.key_id:
        raise no_such_alias(alias.name, tools.realm)
    return replace(call, alias=alias, key=_existing(tools, call, alias.key_id))


def _moved_alias(tools: Tools, call: Call) -> Call:
    call = _alias(tools, call)
    return replace(call, other=_look(tools, call, call.params["TargetKeyId"], aliases=False)[0])


def _grant(tools: Tools, call: Call) -> Call:
    """RetireGrant: a token, or a key and a grant's id (§17)."""
    params = call.params
    if ("GrantToken" in params) == bool({"KeyId", "GrantId"} & set(params)) or (
        "GrantToken" not in params and not {"KeyId", "GrantId"} <= set(params)
    ):
        raise validation("Grant token OR (grant ID, key ID) must be specified")
    if "GrantToken" in params:
        grant = _of_token(tools, params["GrantToken"])
    else:
        grant = grant_of(tools, _look(tools, call, params["KeyId"], aliases=False)[0], params["GrantId"])
    return replace(call, grant=grant, key=_existing(tools, call, grant.key_id))


def _new_primary(tools: Tools, call: Call) -> Call:
    call = _BY_ID(tools, call)
    there = replace(tools, realm=tools.realm.at(call.params["PrimaryRegion"]))
    return replace(call, other=_existing(there, call, call.the_key.key_id))


def ignores_ciphertext(call: Call) -> bool:
    """Whether a dry run asks for authorization alone (§2.5)."""
    return bool(call.params.get("DryRun")) and IGNORE_CIPHERTEXT in call.params.get("DryRunModifiers", ())


def grant_of(tools: Tools, key: Key, grant_id: str) -> Grant:
    """A grant of a key.

    Raises:
        KmsError: NotFoundException.
    """
    grant = tools.store.grant(grant_id)
    if grant is None or (grant.region, grant.key_id) != (key.region, key.key_id):
        raise not_found(f"Grant ID {grant_id} not found")
    return grant


def _of_token(tools: Tools, token: str) -> Grant:
    grant = tools.store.grant(open_token(token, tools.store.secret("grant tokens")))
    if grant is None or grant.region != tools.realm.region:
        raise KmsError("InvalidGrantTokenException", "The grant token is not valid.")
    return grant


def _look(tools: Tools, call: Call, text: str, *, aliases: bool = True) -> tuple[Key, Alias | None]:
    if is_foreign(text, tools.realm):  # there is no such account here, and whoever asks learns nothing of keys (§2.3)
        asked = f"kms:{call.operation}"
        message = f"User: {call.identity.caller.arn} is not authorized to perform: {asked} on resource: {text}"
        raise KmsError("AccessDeniedException", f"{message} because no resource-based policy allows the {asked} action")
    name = parse_key_id(text, tools.realm, aliases=aliases)
    if not name.startswith("alias/"):
        return _existing(tools, call, name), None
    alias = tools.store.alias(tools.realm.region, name)
    key = load(tools, alias.key_id, call.now.timestamp()) if alias else None
    if key is None:
        raise no_such_alias(name, tools.realm)
    return key, alias


def _existing(tools: Tools, call: Call, key_id: str) -> Key:
    key = load(tools, key_id, call.now.timestamp())
    if key is None:
        raise no_such_key(key_id, tools.realm)
    return key


def _named_alias(tools: Tools, call: Call, key_id: str) -> Alias:
    """The alias of this name, or one that could be."""
    region, name = tools.realm.region, call.params["AliasName"]
    check_alias_name(name)
    return tools.store.alias(region, name) or Alias(region, name, key_id, call.seconds, call.seconds)


def _key_of_blob(tools: Tools, call: Call) -> Key:
    try:
        header = blob.Header.parse(call.params["CiphertextBlob"])
    except ValueError as error:
        raise KmsError("InvalidCiphertextException", because=str(error)) from error
    key = load(tools, header.key_id, call.now.timestamp())
    if key is None:
        raise KmsError("AccessDeniedException", _NO_USABLE_KEY)
    return key


_BY_ID = _named("KeyId", aliases=False)
_TARGET = _named("TargetKeyId", aliases=False)
_SOURCE_BLOB = _blob("SourceKeyId")
_SOURCES: Final[dict[Source, Callable[[Tools, Call], Call]]] = {
    Source.NONE: _none,
    Source.ANY_NAME: _named("KeyId"),
    Source.ID: _BY_ID,
    Source.PERHAPS: _perhaps,
    Source.BLOB: _blob("KeyId"),
    Source.TWO_KEYS: _two_keys,
    Source.NEW_ALIAS: _new_alias,
    Source.ALIAS: _alias,
    Source.MOVED_ALIAS: _moved_alias,
    Source.GRANT: _grant,
    Source.NEW_PRIMARY: _new_primary,
}
