"""What time does to keys: imported material expires, material rotates, keys vanish (kms.md §14, §15, §21).

Core: the tools and a time in. Every use of a key comes through `load`, so nothing depends on when housekeeping runs.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Final

from alcove.kms.blob import material_id
from alcove.kms.call import Tools
from alcove.kms.keys import REPLICA, Key, KeyState, Material
from alcove.kms.record import service_event

DAY: Final = 86_400.0
MATERIAL_BYTES: Final = 32
AUTOMATIC: Final = "AUTOMATIC"
ON_DEMAND: Final = "ON_DEMAND"


def load(tools: Tools, key_id: str, now: float) -> Key | None:
    """The key as it is now; one whose window has passed is gone, whether it is purged yet or not."""
    key = tools.store.key(tools.realm.region, key_id)
    if key is not None and _is_due(key, now):
        key = refresh(tools, key, now)
    gone = key is not None and key.deletion_date is not None and key.deletion_date <= now
    return None if gone else key


def housekeeping(tools: Tools, now: float) -> None:
    """Does what is due and was not asked for, and erases what is gone."""
    for key in tools.store.due(now):
        refresh(tools, key, now)
    with tools.store.transaction():  # no key goes off the record
        gone = tools.store.purge(now)
        for key_name in gone:
            tell(tools, "DeleteKey", key_name, now)
    if gone:
        tools.store.sweep()


def tell(tools: Tools, name: str, key: tuple[str, str], now: float, **details: str) -> None:
    """Records what happened to a key, named by its Region and id, without a call."""
    event_id = str(uuid.UUID(bytes=tools.random(16), version=4))
    realm = tools.realm.at(key[0])
    tools.events(service_event(name, realm, realm.key_arn(key[1]), now, event_id, **details))


def unused_days(tools: Tools, key: Key, now: float) -> int:
    """Whole days since a key was used, or since it was made."""
    last = tools.usages.last(key.region, key.key_id, tools.store)
    return int(max(0.0, now - (last.at if last else key.created)) // DAY)


def refresh(tools: Tools, key: Key, now: float) -> Key:
    """Erases material that has expired and rotates what is due; the key as it is then."""
    with tools.store.transaction():
        current = tools.store.key(key.region, key.key_id)
        if current is None or not _is_due(current, now):
            return current or key
        for material in tools.store.materials(current):
            if material.present and material.valid_to is not None and material.valid_to <= now:
                tools.store.save_material(current, replace(material, present=False, valid_to=None), None)
                gone = (current.region, current.key_id)
                tell(tools, "DeleteExpiredKeyMaterial", gone, now, keyMaterialId=material.material_id)
        current = settle(tools, current)
        if current.state is KeyState.PENDING_REPLICA_DELETION:
            _start_window(tools, current, now)
        if _rotates(current, now):
            _rotate_family(tools, current, now)
        return tools.store.key(key.region, key.key_id) or current


def settle(tools: Tools, key: Key, state: KeyState | None = None) -> Key:
    """Writes a key so that it agrees with the materials that it has: usable only while all are present.

    Args:
        tools: Tools.
        key: The key.
        state: What it becomes when all are; None leaves it as it is.
    """
    materials = tools.store.materials(key)
    held = [m for m in materials if not m.pending]
    whole = bool(held) and all(m.present for m in held)
    ends = [m.valid_to for m in materials if m.present and m.valid_to is not None]
    key = replace(key, present=whole, valid_to=min(ends, default=None))
    if not key.deleting:
        key = replace(key, state=(state or key.state) if whole else KeyState.PENDING_IMPORT)
    tools.store.save_key(key)
    return key


def rotate(tools: Tools, key: Key, now: float, kind: str, secret: bytes) -> None:
    """Makes new material current in every Region of the key; the old stays for decryption."""
    name = material_id(secret, key.key_id, tools.store.secret("material ids"))
    for one in tools.store.family(key.key_id):
        number = len(tools.store.materials(one))
        material = Material(name, number, rotated=round(now, 3), rotation_type=kind)
        tools.store.save_material(one, material, secret)
        tools.store.save_key(replace(one, material_id=name))
        tell_rotation(tools, one, now, kind, name)


def tell_rotation(tools: Tools, key: Key, now: float, kind: str, new: str) -> None:
    """Records that a key has other current material; `key` is as it was before."""
    known = {"rotationType": kind, "currentKeyMaterialId": new, "previousKeyMaterialId": key.material_id}
    tell(tools, "RotateKey", (key.region, key.key_id), now, **known)


def _rotate_family(tools: Tools, key: Key, now: float) -> None:
    """One rotation, however many were missed: the next is due a period after the time at which this one was."""
    rotate(tools, key, now, AUTOMATIC, tools.random(MATERIAL_BYTES))
    for one in tools.store.family(key.key_id):
        if one.rotation_days is not None and one.next_rotation is not None:
            period = one.rotation_days * DAY
            missed = int((now - one.next_rotation) // period) + 1
            tools.store.save_key(replace(one, next_rotation=one.next_rotation + missed * period))


def _start_window(tools: Tools, key: Key, now: float) -> None:
    """A primary waits for its replicas; its own window starts when the last of them is gone."""
    others = [one.deletion_date for one in tools.store.family(key.key_id) if one.region != key.region]
    ends = [date for date in others if date is not None and date <= now]
    if len(ends) == len(others):
        date = max(ends, default=now) + (key.window_days or 0) * DAY
        key = replace(key, state=KeyState.PENDING_DELETION, deletion_date=round(date, 3), window_days=None)
        tools.store.save_key(key)


def _rotates(key: Key, now: float) -> bool:
    """A replica follows its primary, and a key that is not enabled waits."""
    due = key.next_rotation is not None and key.next_rotation <= now
    return due and key.state is KeyState.ENABLED and key.role != REPLICA


def _is_due(key: Key, now: float) -> bool:
    waits = key.state is KeyState.PENDING_REPLICA_DELETION
    return waits or _rotates(key, now) or (key.valid_to is not None and key.valid_to <= now)
