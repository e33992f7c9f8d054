"""Operations on keys themselves: making, describing, policies, states (kms.md §2, §8.6 to §8.8, §11).

Core: an authorized call and the tools in; the answer's members out.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from alcove.kms.authorize import authorize
from alcove.kms.blob import material_id
from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, unsupported, validation
from alcove.kms.keys import EXTERNAL, OURS, PRIMARY, Key, KeyState, Material, Realm
from alcove.kms.material import new_material
from alcove.kms.operations.pages import page
from alcove.kms.operations.tags import check_tags
from alcove.kms.policy.document import INVALID_PRINCIPALS, PolicyDocument, malformed, parse_policy
from alcove.kms.policy.principals import Kind
from alcove.kms.specs import ENCRYPT, SYMMETRIC, KeySpec, check_usage, spec_of
from alcove.kms.upkeep import settle

MIN_WINDOW_DAYS: Final = 7  # §9
MAX_WINDOW_DAYS: Final = 30
LOCKOUT: Final = "The new key policy will not allow you to update the key policy in the future."


def create_key(tools: Tools, call: Call) -> dict[str, Any]:
    """CreateKey: with material of our own; everything that could be refused comes before it is made."""
    spec, usage = _kind(call)
    external, several = call.params.get("Origin") == EXTERNAL, bool(call.params.get("MultiRegion"))
    key = Key(
        key_id=_new_id(tools, several=several),
        created=call.seconds,
        policy=call.params.get("Policy") or default_policy(tools.realm),
        material_id="",
        region=tools.realm.region,
        spec=spec.name,
        usage=usage,
        description=call.params.get("Description", ""),
        tags=check_tags(call.params.get("Tags", [])),
        origin=EXTERNAL if external else OURS,
        state=KeyState.PENDING_IMPORT if external else KeyState.ENABLED,
        present=not external,
        role=PRIMARY if several else "",
    )
    if "Policy" in call.params:
        check_policy(tools, replace(call, key=key), key.policy)
    if not external:
        secret = new_material(spec, tools.random, call.made)
        key = replace(key, material_id=material_id(secret, key.key_id, tools.store.secret("material ids")))
    with tools.store.transaction():
        tools.store.create_key(key)
        if not external:
            tools.store.save_material(key, Material(key.material_id), secret)
    return {"KeyMetadata": key.metadata(tools.realm)}


def describe_key(tools: Tools, call: Call) -> dict[str, Any]:
    """DescribeKey."""
    key = call.the_key
    return {"KeyMetadata": key.metadata(tools.realm, tools.store.family(key.key_id) if key.role else ())}


def get_key_last_usage(tools: Tools, call: Call) -> dict[str, Any]:
    """GetKeyLastUsage: since the key was made; empty when it was never used."""
    key = call.the_key
    last = tools.usages.last(key.region, key.key_id, tools.store)
    used = (
        {
            "Operation": last.operation,
            "Timestamp": last.at,
            "CloudTrailEventId": last.event_id,
            "KmsRequestId": last.request_id,
        }
        if last
        else {}
    )
    return {
        "KeyId": tools.realm.key_arn(key.key_id),
        "KeyLastUsage": used,
        "TrackingStartDate": key.created,
        "KeyCreationDate": key.created,
    }


def _new_id(tools: Tools, *, several: bool) -> str:
    name = uuid.UUID(bytes=tools.random(16), version=4)
    return f"mrk-{name.hex}" if several else str(name)


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
    check_policy(tools, call, call.params["Policy"])
    tools.store.save_key(replace(call.the_key, policy=call.params["Policy"]))
    return {}


def list_key_policies(tools: Tools, call: Call) -> dict[str, Any]:
    """ListKeyPolicies: there is one, always."""
    del tools, call
    return {"PolicyNames": ["default"], "Truncated": False}


def list_keys(tools: Tools, call: Call) -> dict[str, Any]:
    """ListKeys, in pages."""

    def fetch(after: str, limit: int) -> list[Key]:
        return tools.store.keys(tools.realm.region, after, limit)

    found, rest = page(tools, call, fetch=fetch, name=lambda key: key.key_id, default=100)
    keys = [{"KeyId": key.key_id, "KeyArn": tools.realm.key_arn(key.key_id)} for key in found]
    return {"Keys": keys, **rest}


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
    key = replace(call.the_key, state=KeyState.PENDING_DELETION, deletion_date=date)
    if key.role == PRIMARY and len(tools.store.family(key.key_id)) > 1:  # the window starts when the last is gone
        key = replace(key, state=KeyState.PENDING_REPLICA_DELETION, deletion_date=None, window_days=days)
    tools.store.save_key(key)
    return {
        "KeyId": tools.realm.key_arn(key.key_id),
        "DeletionDate": key.deletion_date,
        "KeyState": key.state.value,
        "PendingWindowInDays": days,
    }


def cancel_key_deletion(tools: Tools, call: Call) -> dict[str, Any]:
    """CancelKeyDeletion: the key comes back disabled, or without its material as it was."""
    settle(
        tools, replace(call.the_key, state=KeyState.DISABLED, deletion_date=None, window_days=None), KeyState.DISABLED
    )
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
    if params.get("Origin", OURS) not in {OURS, EXTERNAL} or {"CustomKeyStoreId", "XksKeyId"} & set(params):
        raise unsupported("only keys of origin AWS_KMS and EXTERNAL are served")
    return spec, usage


def check_policy(tools: Tools, call: Call, text: str) -> None:
    """Refuses a policy that names nobody, or that would lock the caller out (§8.7).

    Raises:
        KmsError: MalformedPolicyDocumentException.
    """
    policy = parse_policy(text)
    _check_principals(tools, policy)
    if call.params.get("BypassPolicyLockoutSafetyCheck"):
        return
    key = replace(call.the_key, policy=text)
    _, decision = authorize(tools, replace(call, operation="PutKeyPolicy", params={"KeyId": key.key_id}, key=key))
    if not decision.allowed:  # no grant gives this permission
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
    named |= {p.value for statement in policy.statements for p in statement.principals if p.kind is Kind.GONE}
    known = {tools.realm.user_arn(user.name) for user in tools.store.users()}
    known |= {tools.realm.role_arn(role.name) for role in tools.store.roles()}
    if named - known:
        raise malformed(INVALID_PRINCIPALS)
