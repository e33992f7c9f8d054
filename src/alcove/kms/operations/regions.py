"""Multi-Region keys: replicas, and which of them leads (kms.md §16).

Core: an authorized call and the tools in; the answer's members out. Regions are name spaces of one store, so a replica
is complete, and a new primary leads, when the call returns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, unsupported
from alcove.kms.keys import EXTERNAL, PRIMARY, REPLICA, Key, KeyState
from alcove.kms.operations.admin import check_policy, default_policy
from alcove.kms.operations.deliver import arn
from alcove.kms.operations.tags import check_tags


def replicate_key(tools: Tools, call: Call) -> dict[str, Any]:
    """ReplicateKey: the same key with its material elsewhere; policy, description and tags are its own."""
    primary, there = call.the_key, _in(tools, call.params["ReplicaRegion"])
    external = primary.origin == EXTERNAL
    replica = replace(
        primary,
        region=there.realm.region,
        created=call.seconds,
        policy=call.params.get("Policy") or default_policy(there.realm),
        description=call.params.get("Description", ""),
        tags=check_tags(call.params.get("Tags", [])),
        state=KeyState.PENDING_IMPORT if external else KeyState.ENABLED,
        present=not external,
        valid_to=None,
        role=REPLICA,
    )
    if "Policy" in call.params:
        check_policy(there, replace(call, key=replica), replica.policy)
    tools.store.create_key(replica)
    _copy_material(tools, primary, replica)
    metadata = replica.metadata(there.realm, tools.store.family(primary.key_id))
    tags = [{"TagKey": name, "TagValue": value} for name, value in replica.tags.items()]
    creating = {"KeyState": "Creating", "Enabled": False}  # as AWS answers; it is done already
    return {"ReplicaKeyMetadata": metadata | creating, "ReplicaPolicy": replica.policy, "ReplicaTags": tags}


def update_primary_region(tools: Tools, call: Call) -> dict[str, Any]:
    """UpdatePrimaryRegion: two keys change roles."""
    tools.store.save_key(replace(call.the_key, role=REPLICA))
    tools.store.save_key(replace(call.the_other, role=PRIMARY))
    return {}


def check_primary(tools: Tools, call: Call) -> None:
    """The key is a multi-Region primary key."""
    if call.the_key.role != PRIMARY:
        raise unsupported(f"{arn(tools, call)} is not a multi-region primary key.")


def check_place(tools: Tools, call: Call) -> None:
    """ReplicateKey: the Region is served, and does not have the key yet."""
    there = _in(tools, call.params["ReplicaRegion"])
    if there.realm.region not in tools.regions:
        raise unsupported(f"the Region {there.realm.region} is not served")
    if tools.store.key(there.realm.region, call.the_key.key_id):
        key_arn = there.realm.key_arn(call.the_key.key_id)
        raise KmsError("AlreadyExistsException", f"{key_arn} already exists.")


def check_other(tools: Tools, call: Call) -> None:
    """UpdatePrimaryRegion: to another Region than it is in."""
    if call.the_other.region == call.the_key.region:
        raise unsupported(f"{arn(tools, call)} is the primary key already.")


def _copy_material(tools: Tools, primary: Key, replica: Key) -> None:
    """Imported material is imported into each Region by itself; what it must be is known."""
    for material in tools.store.materials(primary):
        if primary.origin == EXTERNAL:
            tools.store.save_material(replica, replace(material, present=False, valid_to=None), None)
        else:
            tools.store.save_material(replica, material, tools.store.material(primary, material.material_id))


def _in(tools: Tools, region: str) -> Tools:
    return replace(tools, realm=tools.realm.at(region))
