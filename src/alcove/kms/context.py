"""The request context: every condition key that a call has (kms.md §6).

Core: a call in; condition keys in lower case out. What is not here is a missing key for every policy.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from alcove.kms.call import Call
from alcove.kms.errors import validation
from alcove.kms.keys import Realm
from alcove.kms.policy.text import Value
from alcove.kms.signatures import RAW
from alcove.kms.specs import SYMMETRIC

WITH_ENCRYPTION: Final = frozenset({
    "Encrypt", "Decrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext",
    "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext",
})  # fmt: skip
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_PARAMETERS: Final = {  # §6.1: condition keys whose value is a parameter
    "DataKeyPairSpec": "KeyPairSpec",
    "EncapsulationAlgorithm": "EncapsulationAlgorithm",
    "KeyAgreementAlgorithm": "KeyAgreementAlgorithm",
    "MacAlgorithm": "MacAlgorithm",
    "SigningAlgorithm": "SigningAlgorithm",
}


def request_context(call: Call, realm: Realm) -> dict[str, Value]:
    """The context of a call, with the global keys, the key's, the operation's and the recipient's."""
    context = _global(call, realm) | _of_key(call) | _of_operation(call)
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
        "aws:currenttime": call.now.strftime(_TIME),
        "aws:epochtime": str(int(call.now.timestamp())),
        "aws:requestedregion": realm.region,
        "aws:useragent": call.peer.user_agent,
        "aws:viaawsservice": "false",
        "aws:principalisawsservice": "false",
        "kms:calleraccount": caller.account,
    }
    if caller.issued is not None:  # temporary credentials alone have these two
        moment = datetime.fromtimestamp(caller.issued, UTC)
        context |= {"aws:tokenissuetime": moment.strftime(_TIME), "aws:multifactorauthpresent": "false"}
    return context | ({"aws:username": caller.name} if caller.name else {})


def _of_key(call: Call) -> dict[str, Value]:
    if call.operation == "CreateKey":
        spec = call.params.get("KeySpec") or call.params.get("CustomerMasterKeySpec") or SYMMETRIC
        usage, origin = call.params.get("KeyUsage", "ENCRYPT_DECRYPT"), call.params.get("Origin", "AWS_KMS")
        return _properties(spec, usage, origin) | _tags(call.params.get("Tags", []))
    if call.key is None:
        return {}
    key = call.key
    tags: dict[str, Value] = {f"aws:resourcetag/{name.lower()}": value for name, value in key.tags.items()}
    return _properties(key.spec, key.usage, key.origin) | tags | {"aws:resourceaccount": call.identity.caller.account}


def _properties(spec: str, usage: str, origin: str) -> dict[str, Value]:
    return {
        "kms:keyspec": spec,
        "kms:customermasterkeyspec": spec,
        "kms:keyusage": usage,
        "kms:customermasterkeyusage": usage,
        "kms:keyorigin": origin,
        "kms:multiregion": "false",
    }


def _tags(tags: list[dict[str, str]]) -> dict[str, Value]:
    found: dict[str, Value] = {f"aws:requesttag/{tag['TagKey'].lower()}": tag["TagValue"] for tag in tags}
    return found | ({"aws:tagkeys": tuple(tag["TagKey"] for tag in tags)} if tags else {})


def _of_operation(call: Call) -> dict[str, Value]:
    params, context = call.params, dict[str, Value]()
    if call.operation in WITH_ENCRYPTION:
        context["kms:encryptionalgorithm"] = params.get("EncryptionAlgorithm", SYMMETRIC)
        pairs: dict[str, Any] = params.get("EncryptionContext", {})
        context |= _encryption_context(pairs)
    for name, member in _PARAMETERS.items():
        if member in params:
            context[f"kms:{name.lower()}"] = params[member]
    if "SigningAlgorithm" in params:
        context["kms:messagetype"] = params.get("MessageType", RAW)
    if "BypassPolicyLockoutSafetyCheck" in params:
        context["kms:bypasspolicylockoutsafetycheck"] = _bool(params["BypassPolicyLockoutSafetyCheck"])
    if call.operation in {"GetKeyPolicy", "PutKeyPolicy"}:
        context["kms:policyname"] = params.get("PolicyName", "default")
    if call.operation == "ScheduleKeyDeletion":
        context["kms:schedulekeydeletionpendingwindowindays"] = str(params.get("PendingWindowInDays", 30))
    return context


def _encryption_context(pairs: dict[str, Any]) -> dict[str, Value]:
    """Policies compare names without case (§6.1): two names that differ in case alone could hide one from a Deny."""
    context: dict[str, Value] = {f"kms:encryptioncontext:{name.lower()}": value for name, value in pairs.items()}
    if len(context) != len(pairs):
        raise validation("EncryptionContext has keys that differ in letter case alone")
    return context | ({"kms:encryptioncontextkeys": tuple(pairs)} if pairs else {})


def _bool(value: object) -> str:
    return "true" if value else "false"
