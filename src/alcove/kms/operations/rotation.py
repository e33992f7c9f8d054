"""Rotation: new material under an old name (kms.md §14).

Core: an authorized call and the tools in; the answer's members out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, unsupported
from alcove.kms.keys import EXTERNAL, Key, KeyState, Material
from alcove.kms.operations.deliver import arn
from alcove.kms.operations.pages import listed, page
from alcove.kms.specs import SYMMETRIC
from alcove.kms.upkeep import DAY, MATERIAL_BYTES, ON_DEMAND, rotate, tell_rotation

DEFAULT_DAYS: Final = 365
MAX_ON_DEMAND: Final = 25  # §9
NEAR: Final = 20 * 60.0  # seconds before an automatic rotation in which none is made on demand


def enable_key_rotation(tools: Tools, call: Call) -> dict[str, Any]:
    """EnableKeyRotation: the first rotation is one period away; in every Region of the key."""
    days = call.params.get("RotationPeriodInDays", DEFAULT_DAYS)
    _schedule(tools, call, days, call.seconds + days * DAY)
    return {}


def disable_key_rotation(tools: Tools, call: Call) -> dict[str, Any]:
    """DisableKeyRotation."""
    _schedule(tools, call, None, None)
    return {}


def get_key_rotation_status(tools: Tools, call: Call) -> dict[str, Any]:
    """GetKeyRotationStatus: off while a key waits for its deletion, and as it was when it comes back."""
    key = call.the_key
    answer: dict[str, Any] = {"KeyId": arn(tools, call), "KeyRotationEnabled": False}
    if key.rotation_days is None or key.deleting:
        return answer
    schedule = {"RotationPeriodInDays": key.rotation_days, "NextRotationDate": key.next_rotation}
    return answer | {"KeyRotationEnabled": True} | schedule


def rotate_key_on_demand(tools: Tools, call: Call) -> dict[str, Any]:
    """RotateKeyOnDemand: now, 25 times in all; imported keys take the material that waits for it."""
    key = call.the_key
    _check_count(tools, call)
    if key.next_rotation is not None and key.next_rotation - call.now.timestamp() < NEAR:
        raise KmsError("ConflictException", f"An automatic rotation of {arn(tools, call)} is about to begin.")
    if key.origin == EXTERNAL:
        _take_pending(tools, call)
    else:
        rotate(tools, key, call.now.timestamp(), ON_DEMAND, tools.random(MATERIAL_BYTES))
    return {"KeyId": arn(tools, call)}


def list_key_rotations(tools: Tools, call: Call) -> dict[str, Any]:
    """ListKeyRotations: rotations alone, or all material, in the order in which it came."""
    key, everything = call.the_key, call.params.get("IncludeKeyMaterial") == "ALL_KEY_MATERIAL"
    materials = [m for m in tools.store.materials(key) if everything or m.rotated is not None]
    entries = [(str(i), _entry(tools, call, m)) for i, m in enumerate(materials)]
    found, rest = page(
        tools, call, fetch=lambda after, limit: listed(entries, after, limit), name=lambda e: e[0], default=100
    )
    return {"Rotations": [entry for _, entry in found], **rest}


def check_status(tools: Tools, call: Call) -> None:
    """GetKeyRotationStatus of an imported symmetric key is not served, as at AWS; of other keys it is always off."""
    if call.the_key.spec == SYMMETRIC and call.the_key.origin == EXTERNAL:
        raise unsupported(f"{arn(tools, call)} origin is EXTERNAL which is not valid for this operation.")


def _schedule(tools: Tools, call: Call, days: int | None, date: float | None) -> None:
    for key in tools.store.family(call.the_key.key_id):
        tools.store.save_key(replace(key, rotation_days=days, next_rotation=date))


def _check_count(tools: Tools, call: Call) -> None:
    kinds = [m.rotation_type for m in tools.store.materials(call.the_key)]
    if kinds.count(ON_DEMAND) >= MAX_ON_DEMAND:
        raise KmsError(
            "LimitExceededException",
            "The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be "
            f"performed for this key: {arn(tools, call)}",
        )


def _take_pending(tools: Tools, call: Call) -> None:
    """Makes the pending material current, in every Region; a replica without it cannot follow."""
    family = tools.store.family(call.the_key.key_id)
    waiting = [(key, m) for key in family for m in tools.store.materials(key) if m.pending and m.present]
    if len(waiting) < len(family) or len({m.material_id for _, m in waiting}) != 1:
        message = f"No available key material pending rotation for the key: {arn(tools, call)}."
        raise KmsError("KMSInvalidStateException", message)
    for key, material in waiting:
        now_current = replace(material, pending=False, rotated=call.seconds, rotation_type=ON_DEMAND)
        tools.store.mark_material(key, now_current)
        tools.store.save_key(replace(key, material_id=material.material_id))
        tell_rotation(tools, key, call.seconds, ON_DEMAND, material.material_id)


def _entry(tools: Tools, call: Call, material: Material) -> dict[str, Any]:
    key = call.the_key
    entry = {
        "KeyId": arn(tools, call),
        "KeyMaterialId": material.material_id,
        "KeyMaterialState": _state(key, material),
        "RotationDate": material.rotated,
        "RotationType": material.rotation_type,
    }
    if key.origin != EXTERNAL:
        return entry
    expires = "KEY_MATERIAL_DOES_NOT_EXPIRE" if material.valid_to is None else "KEY_MATERIAL_EXPIRES"
    return entry | {
        "KeyMaterialDescription": material.description,
        "ImportState": "IMPORTED" if material.present else KeyState.PENDING_IMPORT.name,
        "ExpirationModel": expires if material.present else None,
        "ValidTo": material.valid_to,
    }


def _state(key: Key, material: Material) -> str:
    if material.pending:
        return "PENDING_ROTATION"
    return "CURRENT" if material.material_id == key.material_id else "NON_CURRENT"
