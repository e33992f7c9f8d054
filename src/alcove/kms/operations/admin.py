"""Operations on keys themselves: making, describing, policies, states (kms.md §2, §8.6 to §8.8, §11).

Core: an authorized call and the tools in; the answer's members out.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from alcove.kms.blob import material_id
from alcove.kms.call import Call, Tools
from alcove.kms.context import request_context
from alcove.kms.errors import KmsError, unsupported, validation
from alcove.kms.keys import Key, KeyState, Realm
from alcove.kms.material import new_material
from alcove.kms.operations.pages import page
from alcove.kms.policy.document import INVALID_PRINCIPALS, PolicyDocument, malformed, parse_policy
from alcove.kms.policy.evaluate import Access, evaluate
from alcove.kms.policy.principals import Kind
from alcove.kms.specs import ENCRYPT, SYMMETRIC, KeySpec, check_usage, spec_of

MIN_WINDOW_DAYS: Final = 7  # §9
MAX_WINDOW_DAYS: Final = 30
MAX_TAGS: Final = 50
LOCKOUT: Final = "The new key policy will not allow you to update the key policy in the future."


def create_key(tools: Tools, call: Call) -> dict[str, Any]:
    """CreateKey: with material of our own; everything that could be refused comes before it is made."""
    spec, usage = _kind(call)
    key_id = str(uuid.UUID(bytes=tools.random(16), version=4))
    key = Key(
        key_id=key_id,
        created=round(call.now.timestamp(), 3),
        policy=call.params.get("Policy") or default_policy(tools.realm),
        material_id="",
        spec=spec.name,
        usage=usage,
        description=call.params.get("Description", ""),
        tags=_tags(call.params.get("Tags", [])),
    )
    if "Policy" in call.params:
        _check_policy(tools, replace_key(call, key), key.policy)
    material = new_material(spec, tools.random, call.made)
    key = replace(key, material_id=material_id(material, key_id))
    tools.store.create_key(key, material)
    return {"KeyMetadata": key.metadata(tools.realm)}


def describe_key(tools: Tools, call: Call) -> dict[str, Any]:
    """DescribeKey."""
    return {"KeyMetadata": call.the_key.metadata(tools.realm)}


def get_key_policy(tools: Tools, call: Call) -> dict[str, Any]:
    """GetKeyPolicy: the text as it was put."""
    del tools
    if call.params.get("PolicyName", "default") != "default":
        raise KmsError("NotFoundException", "No such policy exists")
    return {"Policy": call.the_key.policy, "PolicyName": "default"}


def put_key_policy(tools: Tools, call: Call) -> dict[str, Any]:
    """PutKeyPolicy: refused when it could not be put again, unless the caller insists (§8.7)."""
    name = call.params.get("PolicyName", "default")
    if name == "AWS_RAM":
        raise validation("The AWS_RAM policy can only be managed by the RAM service.")
    if name != "default":
        raise validation("The only valid policy name is default")
    _check_policy(tools, call, call.params["Policy"])
    tools.store.save_key(replace(call.the_key, policy=call.params["Policy"]))
    return {}


def list_key_policies(tools: Tools, call: Call) -> dict[str, Any]:
    """ListKeyPolicies: there is one, always."""
    del tools, call
    return {"PolicyNames": ["default"], "Truncated": False}


def list_keys(tools: Tools, call: Call) -> dict[str, Any]:
    """ListKeys, in pages."""
    secret = tools.store.derive("markers")
    found, rest = page(call, secret, fetch=tools.store.keys, name=lambda key: key.key_id, default=100)
    keys = [{"KeyId": key.key_id, "KeyArn": tools.realm.key_arn(key.key_id)} for key in found]
    return {"Keys": keys, **rest}


def list_resource_tags(tools: Tools, call: Call) -> dict[str, Any]:
    """ListResourceTags: all of them, 50 at most."""
    del tools
    tags = [{"TagKey": name, "TagValue": value} for name, value in call.the_key.tags.items()]
    return {"Tags": tags, "Truncated": False}


def update_key_description(tools: Tools, call: Call) -> dict[str, Any]:
    """UpdateKeyDescription."""
    tools.store.save_key(replace(call.the_key, description=call.params["Description"]))
    return {}


def enable_key(tools: Tools, call: Call) -> dict[str, Any]:
    """EnableKey."""
    tools.store.save_key(replace(call.the_key, state=KeyState.ENABLED))
    return {}


def disable_key(tools: Tools, call: Call) -> dict[str, Any]:
    """DisableKey."""
    tools.store.save_key(replace(call.the_key, state=KeyState.DISABLED))
    return {}


def schedule_key_deletion(tools: Tools, call: Call) -> dict[str, Any]:
    """ScheduleKeyDeletion: unusable at once, gone after the window."""
    days = call.params.get("PendingWindowInDays", MAX_WINDOW_DAYS)
    date = round((call.now + timedelta(days=days)).timestamp(), 3)
    tools.store.save_key(replace(call.the_key, state=KeyState.PENDING_DELETION, deletion_date=date))
    return {
        "KeyId": tools.realm.key_arn(call.the_key.key_id),
        "DeletionDate": date,
        "KeyState": KeyState.PENDING_DELETION.value,
        "PendingWindowInDays": days,
    }


def cancel_key_deletion(tools: Tools, call: Call) -> dict[str, Any]:
    """CancelKeyDeletion: the key comes back disabled."""
    tools.store.save_key(replace(call.the_key, state=KeyState.DISABLED, deletion_date=None))
    return {"KeyId": tools.realm.key_arn(call.the_key.key_id)}


def check_window(tools: Tools, call: Call) -> None:
    """Refuses a deletion window outside 7 to 30 days (§9)."""
    del tools
    days = call.params.get("PendingWindowInDays", MAX_WINDOW_DAYS)
    if not MIN_WINDOW_DAYS <= days <= MAX_WINDOW_DAYS:
        raise validation(f"PendingWindowInDays must be between {MIN_WINDOW_DAYS} and {MAX_WINDOW_DAYS}")


def default_policy(realm: Realm) -> str:
    """The policy of a key made without one (§8.8)."""
    statement = {
        "Sid": "Enable IAM User Permissions",
        "Effect": "Allow",
        "Principal": {"AWS": realm.root_arn},
        "Action": "kms:*",
        "Resource": "*",
    }
    return json.dumps({"Version": "2012-10-17", "Id": "key-default-1", "Statement": [statement]})


def replace_key(call: Call, key: Key) -> Call:
    """The call as it would be with another key."""
    return replace(call, key=key)


def _kind(call: Call) -> tuple[KeySpec, str]:
    """Spec and usage of the key that is asked for."""
    params = call.params
    specs = {params[name] for name in ("KeySpec", "CustomerMasterKeySpec") if name in params}
    if len(specs) > 1:
        raise validation("KeySpec and CustomerMasterKeySpec differ")
    if specs - {SYMMETRIC} and "KeyUsage" not in params:
        raise validation("You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.")
    spec, usage = spec_of(specs.pop() if specs else SYMMETRIC), params.get("KeyUsage", ENCRYPT)
    check_usage(spec, usage)
    if params.get("Origin", "AWS_KMS") != "AWS_KMS" or {"CustomKeyStoreId", "XksKeyId"} & set(params):
        raise unsupported("only keys of origin AWS_KMS are served")
    if params.get("MultiRegion"):
        raise unsupported("multi-Region keys are not served")
    return spec, usage


def _tags(tags: list[dict[str, str]]) -> dict[str, str]:
    names = [tag["TagKey"] for tag in tags]
    if len(set(names)) != len(names):
        raise KmsError("TagException", "Duplicate tag keys")
    if len(names) > MAX_TAGS:
        raise KmsError("TagException", "Too many tags")
    if any(name.lower().startswith("aws:") for name in names):
        raise KmsError("TagException", "Tags beginning with aws: are reserved")
    return {tag["TagKey"]: tag["TagValue"] for tag in tags}


def _check_policy(tools: Tools, call: Call, text: str) -> None:
    policy = parse_policy(text)
    _check_principals(tools, policy)
    if call.params.get("BypassPolicyLockoutSafetyCheck"):
        return
    later = replace(call, operation="PutKeyPolicy", params={"KeyId": call.the_key.key_id})
    context = request_context(later, tools.realm)
    access = Access(call.identity.caller, "kms:PutKeyPolicy", tools.realm.key_arn(call.the_key.key_id), context)
    if not evaluate(access, policy, call.identity.policies).allowed:
        raise malformed(LOCKOUT)


def _check_principals(tools: Tools, policy: PolicyDocument) -> None:
    """Users and roles of our own account must exist (§8.6); a typing error would otherwise lock everyone out."""
    ours = f":{tools.realm.account}:"
    named = {
        principal.value
        for statement in policy.statements
        for principal in statement.principals
        if principal.kind in {Kind.USER, Kind.ROLE} and ours in principal.value
    }
    known = {tools.realm.user_arn(user.name) for user in tools.store.users()}
    known |= {tools.realm.role_arn(role.name) for role in tools.store.roles()}
    if named - known:
        raise malformed(INVALID_PRINCIPALS)
