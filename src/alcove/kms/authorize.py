"""What a call needs permission for, and whether it has it: policies, then grants (kms.md §2.2, §8.1, §17, §18).

Core: the tools and a call in; the deciding access and its decision out.

Most operations need one permission on one key. The others:
    ReEncrypt            kms:ReEncryptFrom on the source, kms:ReEncryptTo on the destination, each with its own context
    aliases              the permission on the alias, by identity policy, and on each key that it points or pointed to
    tags on a new key    kms:TagResource beside the permission to make the key
    ReplicateKey         kms:CreateKey in the replica's Region beside it
    UpdatePrimaryRegion  both keys
    ListAliases          none on the key whose aliases are asked for
    RetireGrant          comes from the grant; policies can delegate it and can deny it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from alcove.kms.call import Call, Tools
from alcove.kms.context import identity_context, request_context
from alcove.kms.grants import SELF, grants_of, may_retire
from alcove.kms.keys import Key
from alcove.kms.policy.document import parse_policy
from alcove.kms.policy.evaluate import Access, Decision, Why, evaluate
from alcove.kms.policy.text import Value
from alcove.kms.upkeep import unused_days

MAX_ALIASES: Final = 50
_ALIAS_OPERATIONS: Final = frozenset({"CreateAlias", "DeleteAlias", "UpdateAlias"})
_TRAILING: Final = frozenset({"DisableKey", "ScheduleKeyDeletion"})
_CHECKED: Final = frozenset({"EncryptionContext"})  # making the context refuses what is wrong in these
_CONTEXTUAL: Final = frozenset({"CreateGrant", "RetireGrant"})  # likewise
_DENIES: Final = frozenset({Why.KEY_POLICY_DENIES, Why.IDENTITY_DENIES})


class Demand(NamedTuple):
    """One permission: the call as the policies see it, in which Region, and on what when that is not its key."""

    call: Call
    region: str
    resource: str | None = None


def authorize(tools: Tools, call: Call) -> tuple[Access, Decision]:
    """The first access that is denied, or the last one, with its decision."""
    for demand in demands(tools, call):
        access, decision = _decide(_in(tools, demand.region), demand)
        if not decision.allowed:
            break
    return access, decision


def demands(tools: Tools, call: Call) -> Iterator[Demand]:
    """All permissions that a call needs; there is one at least."""
    here = tools.realm.region
    if call.operation == "ReEncrypt":
        yield Demand(source_half(call), here)
        yield Demand(destination_half(call), here)
        return
    if call.operation == "ListAliases":  # by identity policy alone, also when a key is named
        yield Demand(replace(call, key=None), here)
        return
    if call.operation in _ALIAS_OPERATIONS and call.alias:
        yield Demand(replace(call, key=None), here, tools.realm.alias_arn(call.alias.name))
    yield Demand(call, here)
    if call.other:
        region = call.other.region
        yield Demand(replace(call, key=call.other), region)
    if call.operation == "ReplicateKey":
        there = replace(call, operation="CreateKey", key=None, params=_replica(call))
        yield Demand(there, call.params["ReplicaRegion"])
        call = there
    if call.operation == "CreateKey" and call.params.get("Tags"):
        yield Demand(replace(call, operation="TagResource"), call.params.get("ReplicaRegion", here))


def source_half(call: Call) -> Call:
    """ReEncrypt's first half, as a call that decrypts."""
    return _half(call, "ReEncryptFrom", "Source", call)


def destination_half(call: Call) -> Call:
    """ReEncrypt's second half, as a call that encrypts; its key is the destination."""
    turned = replace(call, key=call.the_other, other=call.the_key, alias=call.other_alias)
    return _half(call, "ReEncryptTo", "Destination", turned)


def _half(call: Call, operation: str, side: str, turned: Call) -> Call:
    members = {"EncryptionContext": f"{side}EncryptionContext", "EncryptionAlgorithm": f"{side}EncryptionAlgorithm"}
    params = {name: call.params[member] for name, member in members.items() if member in call.params}
    kept = {name: call.params[name] for name in ("CiphertextBlob", "GrantTokens") if name in call.params}
    return replace(turned, operation=operation, params=params | kept)


def _replica(call: Call) -> dict[str, object]:
    """The parameters of the key that ReplicateKey makes, as CreateKey would have them."""
    key = call.the_key
    fixed = {"KeySpec": key.spec, "KeyUsage": key.usage, "Origin": key.origin, "MultiRegion": True}
    return {**{k: v for k, v in call.params.items() if k != "KeyId"}, **fixed}


def _in(tools: Tools, region: str) -> Tools:
    return tools if region == tools.realm.region else replace(tools, realm=tools.realm.at(region))


def _decide(tools: Tools, demand: Demand) -> tuple[Access, Decision]:
    call, key = demand.call, demand.call.key
    arn = demand.resource or (tools.realm.key_arn(key.key_id) if key else None)
    policy = parse_policy(key.policy) if key else None
    reads = (*policy.reads, *call.identity.reads) if policy else call.identity.reads
    context: dict[str, Value] = {}
    hidden: dict[str, Value] = {}
    if reads or not _CHECKED.isdisjoint(call.params) or call.operation in _CONTEXTUAL:
        hidden = identity_context(call, lambda: _aliases(tools, key))
        context = request_context(call, tools.realm, reads)
    if key and reads and call.operation in _TRAILING:
        context["kms:trailingdayswithoutkeyusage"] = str(unused_days(tools, key, call.now.timestamp()))
    access = Access(call.identity.caller, f"kms:{call.operation}", arn, context, hidden)
    decision = tools.decisions.decide(access, policy, call.identity.policies)
    if call.operation == "RetireGrant":
        return access, _retiring(tools, call, access, decision)
    if not decision.allowed and decision.why not in _DENIES and key:
        decision = _granted(tools, call, access, key) or decision
    return access, decision


def _granted(tools: Tools, call: Call, access: Access, key: Key) -> Decision | None:
    """A grant that allows the call; one to the whole account needs an identity policy beside it."""
    for grant, reach in grants_of(tools, call, key):
        if reach == SELF or evaluate(access, None, call.identity.policies).allowed:
            return Decision(allowed=True, why=Why.GRANT_ALLOWS, statement=grant.grant_id)
    return None


def _retiring(tools: Tools, call: Call, access: Access, decision: Decision) -> Decision:
    """RetireGrant: a Deny counts, an Allow of the key policy does not (§17)."""
    if decision.why in _DENIES or call.grant is None:
        return decision
    if may_retire(tools, call.identity.caller, call.grant):
        return Decision(allowed=True, why=Why.GRANT_ALLOWS, statement=call.grant.grant_id)
    return evaluate(access, None, call.identity.policies)


def _aliases(tools: Tools, key: Key | None) -> list[str]:
    """A key with more aliases than it may have matches no condition on them (§6.1)."""
    found = tools.store.aliases(key.region, "", MAX_ALIASES + 1, key.key_id) if key else []
    return [alias.name for alias in found] if len(found) <= MAX_ALIASES else []
