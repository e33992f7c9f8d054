"""The request context: every condition key that a call has (kms.md §6).

Core: a call in; condition keys in lower case out. What is not here is a missing key for every policy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from alcove.kms.call import Call
from alcove.kms.errors import validation
from alcove.kms.keys import OURS, PRIMARY, Realm
from alcove.kms.policy.text import Value
from alcove.kms.signatures import RAW
from alcove.kms.specs import SYMMETRIC

WITH_ENCRYPTION: Final = frozenset({
    "Encrypt", "Decrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext",
    "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo",
})  # fmt: skip
WITH_ALIAS: Final = frozenset({"CreateAlias", "UpdateAlias", "DeleteAlias"})  # about an alias, not naming a key by it
GLOBAL: Final = frozenset({  # what `_global` can give
    "aws:principalarn", "aws:principalaccount", "aws:principaltype", "aws:userid", "aws:username", "aws:sourceip",
    "aws:securetransport", "aws:currenttime", "aws:epochtime", "aws:requestedregion", "aws:useragent",
    "aws:viaawsservice", "aws:principalisawsservice", "aws:tokenissuetime", "aws:multifactorauthpresent",
    "kms:calleraccount",
})  # fmt: skip
OF_KEY: Final = frozenset({  # what `_of_key` can give
    "aws:resourceaccount", "kms:keyspec", "kms:customermasterkeyspec", "kms:keyusage", "kms:customermasterkeyusage",
    "kms:keyorigin", "kms:multiregion", "kms:multiregionkeytype",
})  # fmt: skip
_PARAMETERS: Final = {  # §6.1: parameters whose value is a condition key's
    "KeyPairSpec": "kms:datakeypairspec",
    "EncapsulationAlgorithm": "kms:encapsulationalgorithm",
    "KeyAgreementAlgorithm": "kms:keyagreementalgorithm",
    "MacAlgorithm": "kms:macalgorithm",
    "SigningAlgorithm": "kms:signingalgorithm",
    "ExpirationModel": "kms:expirationmodel",
    "PrimaryRegion": "kms:primaryregion",
    "ReplicaRegion": "kms:replicaregion",
    "RotationPeriodInDays": "kms:rotationperiodindays",
    "ValidTo": "kms:validto",
    "WrappingAlgorithm": "kms:wrappingalgorithm",
    "WrappingKeySpec": "kms:wrappingkeyspec",
}
_PRINCIPALS: Final = ("GranteePrincipal", "GranteeServicePrincipal", "RetiringPrincipal", "RetiringServicePrincipal")
_OF_GRANTS: Final = frozenset({"CreateGrant", "ListGrants", "RevokeGrant"})


def request_context(call: Call, realm: Realm, reads: Collection[str] | None = None) -> dict[str, Value]:
    """The context of a call, with the global keys, the key's, the operation's and the recipient's.

    Args:
        call: The call.
        realm: Where it is made.
        reads: The condition keys that make a difference to somebody; others may be left out. None for all there are.
    """
    context = _of_operation(call)
    if reads is None or not GLOBAL.isdisjoint(reads):
        context |= _global(call, realm)
    if reads is None or not OF_KEY.isdisjoint(reads):
        context |= _of_key(call)
    if call.recipient:
        context |= call.recipient.context
    return context


def _global(call: Call, realm: Realm) -> dict[str, Value]:
    caller = call.identity.caller
    context: dict[str, Value] = {
        "aws:principalarn": caller.role_arn or caller.arn,
        "aws:principalaccount": caller.account,
        "aws:principaltype": "User" if caller.name else "AssumedRole" if caller.role_arn else "Account",
        "aws:userid": caller.user_id,
        "aws:sourceip": call.peer.address,
        "aws:securetransport": _bool(call.peer.secure),
        "aws:currenttime": _iso(int(call.now.timestamp())),
        "aws:epochtime": str(int(call.now.timestamp())),
        "aws:requestedregion": realm.region,
        "aws:useragent": call.peer.user_agent,
        "aws:viaawsservice": "false",
        "aws:principalisawsservice": "false",
    }
    if call.operation != "ListRetirableGrants":
        context["kms:calleraccount"] = caller.account
    if caller.issued is not None:  # temporary credentials alone have these two
        context |= {"aws:tokenissuetime": _iso(caller.issued), "aws:multifactorauthpresent": "false"}
    return context | ({"aws:username": caller.name} if caller.name else {})


@functools.lru_cache(maxsize=256)
def _iso(second: int) -> str:
    """A time as policies compare it; a second's requests share it."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _of_key(call: Call) -> dict[str, Value]:
    if call.operation == "CreateKey":
        spec = call.params.get("KeySpec") or call.params.get("CustomerMasterKeySpec") or SYMMETRIC
        usage, origin = call.params.get("KeyUsage", "ENCRYPT_DECRYPT"), call.params.get("Origin", OURS)
        role = PRIMARY if call.params.get("MultiRegion") else ""
        return _properties(spec, usage, origin, role)
    if call.key is None:
        return {}
    key = call.key
    account: dict[str, Value] = {"aws:resourceaccount": call.identity.caller.account}
    return _properties(key.spec, key.usage, key.origin, key.role) | account


def identity_context(call: Call, aliases: Callable[[], list[str]]) -> dict[str, Value]:
    """The condition keys of a call that identity policies alone have: of the key's tags and aliases.

    Args:
        call: The call.
        aliases: Gives the names of the key's aliases; asked only when a policy speaks of them.
    """
    if call.key is None:
        return {}
    context: dict[str, Value] = {f"aws:resourcetag/{name.lower()}": value for name, value in call.key.tags.items()}
    names = aliases() if "kms:resourcealiases" in call.identity.reads else []
    return context | ({"kms:resourcealiases": tuple(names)} if names else {})


def _properties(spec: str, usage: str, origin: str, role: str) -> dict[str, Value]:
    found: dict[str, Value] = {
        "kms:keyspec": spec,
        "kms:customermasterkeyspec": spec,
        "kms:keyusage": usage,
        "kms:customermasterkeyusage": usage,
        "kms:keyorigin": origin,
        "kms:multiregion": _bool(role),
    }
    return found | ({"kms:multiregionkeytype": role} if role else {})


def _tags(params: Mapping[str, Any]) -> dict[str, Value]:
    tags: list[dict[str, str]] = params.get("Tags", [])
    found: dict[str, Value] = {f"aws:requesttag/{tag['TagKey'].lower()}": tag["TagValue"] for tag in tags}
    names = tuple(tag["TagKey"] for tag in tags) + tuple(params.get("TagKeys", ()))
    return found | ({"aws:tagkeys": names} if names else {})


def _of_operation(call: Call) -> dict[str, Value]:
    params, context = call.params, dict[str, Value]()
    if call.operation in WITH_ENCRYPTION:
        context["kms:encryptionalgorithm"] = params.get("EncryptionAlgorithm", SYMMETRIC)
        pairs: dict[str, Any] = params.get("EncryptionContext", {})
        context |= _encryption_context(pairs)
    for member in _PARAMETERS.keys() & params.keys():
        context[_PARAMETERS[member]] = str(params[member])
    if "SigningAlgorithm" in params:
        context["kms:messagetype"] = params.get("MessageType", RAW)
    if "BypassPolicyLockoutSafetyCheck" in params:
        context["kms:bypasspolicylockoutsafetycheck"] = _bool(params["BypassPolicyLockoutSafetyCheck"])
    if call.operation in {"GetKeyPolicy", "PutKeyPolicy"}:
        context["kms:policyname"] = params.get("PolicyName", "default")
    if call.operation == "ScheduleKeyDeletion":
        context["kms:schedulekeydeletionpendingwindowindays"] = str(params.get("PendingWindowInDays", 30))
    if call.alias and call.operation not in WITH_ALIAS:
        context["kms:requestalias"] = call.alias.name
    if "Tags" in params or "TagKeys" in params:
        context |= _tags(params)
    if call.operation in {"ReEncryptFrom", "ReEncryptTo"}:
        context["kms:reencryptonsamekey"] = _bool(call.the_key.key_id == call.the_other.key_id)
    return context | _of_grant(call) if "Grant" in call.operation else context


def _of_grant(call: Call) -> dict[str, Value]:
    context: dict[str, Value] = {"kms:grantisforawsresource": "false"} if call.operation in _OF_GRANTS else {}
    constraints: Mapping[str, Any] = {}
    if call.operation == "CreateGrant":
        constraints = call.params.get("Constraints", {})
        context["kms:grantoperations"] = tuple(call.params["Operations"])
        context |= {f"kms:{name.lower()}": call.params[name] for name in _PRINCIPALS if name in call.params}
    elif call.operation == "RetireGrant" and call.grant:
        constraints = call.grant.constraints or {}
    if "SourceArn" in constraints:
        context["kms:grantconstraintsourcearn"] = constraints["SourceArn"]
    for kind in ("EncryptionContextEquals", "EncryptionContextSubset"):
        if kind in constraints:
            context |= {"kms:grantconstrainttype": kind} | _encryption_context(constraints[kind])
    return context


def _encryption_context(pairs: dict[str, Any]) -> dict[str, Value]:
    """Policies compare names without case (§6.1): two names that differ in case alone could hide one from a Deny."""
    context: dict[str, Value] = {f"kms:encryptioncontext:{name.lower()}": value for name, value in pairs.items()}
    if len(context) != len(pairs):
        raise validation("EncryptionContext has keys that differ in letter case alone")
    return context | ({"kms:encryptioncontextkeys": tuple(pairs)} if pairs else {})


def _bool(value: object) -> str:
    return "true" if value else "false"
