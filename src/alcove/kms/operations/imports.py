"""Imported key material (kms.md §15).

Core: an authorized call and the tools in; the answer's members out.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from alcove.kms import wrapping
from alcove.kms.blob import material_id
from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, validation
from alcove.kms.keys import Key, KeyState, Material
from alcove.kms.material import check_material, new_material, public_half
from alcove.kms.operations.deliver import arn
from alcove.kms.specs import SPECS, SYMMETRIC
from alcove.kms.upkeep import settle

EXPIRES: Final = "KEY_MATERIAL_EXPIRES"
NEW: Final = "NEW_KEY_MATERIAL"
EXISTING: Final = "EXISTING_KEY_MATERIAL"
MAX_VALIDITY: Final = timedelta(days=365)
_LABEL: Final = "import tokens"


def get_parameters_for_import(tools: Tools, call: Call) -> dict[str, Any]:
    """GetParametersForImport: a wrapping key of its own for each call, good for a day."""
    params, ends = call.params, round(call.seconds + wrapping.VALIDITY, 3)
    secret = new_material(SPECS[params["WrappingKeySpec"]], tools.random, call.made)
    binding = f"{arn(tools, call)} {params['WrappingAlgorithm']}"
    nonce = tools.random(wrapping.NONCE_BYTES)
    return {
        "KeyId": arn(tools, call),
        "ImportToken": wrapping.seal_token(secret, binding, ends, tools.store.derive(_LABEL), nonce),
        "PublicKey": public_half(secret),
        "ParametersValidTo": ends,
    }


def import_key_material(tools: Tools, call: Call) -> dict[str, Any]:
    """ImportKeyMaterial: the first material, the same again, or more that waits for a rotation."""
    valid_to = _validity(call)
    secret = _unwrapped(tools, call)
    key = call.the_key
    check_material(key.spec, secret)
    name = material_id(secret, key.key_id, tools.store.secret("material ids"))
    known = {material.material_id: material for material in tools.store.materials(key)}
    _check_name(call, name)
    _check_kind(tools, call, name, known)
    material = replace(
        known.get(name, Material(name, len(known), pending=bool(known))),
        present=True,
        valid_to=valid_to,
        description=call.params.get("KeyMaterialDescription") or (known[name].description if name in known else None),
    )
    tools.store.save_material(key, material, secret)
    if not key.material_id:
        key = replace(key, material_id=name)
    was = KeyState.ENABLED if key.state is KeyState.PENDING_IMPORT else None
    settle(tools, key, was)
    return {"KeyId": arn(tools, call), "KeyMaterialId": name if key.spec == SYMMETRIC else None}


def delete_imported_key_material(tools: Tools, call: Call) -> dict[str, Any]:
    """DeleteImportedKeyMaterial: the secret is erased; what it was is remembered, so that it alone can come back."""
    key, name = call.the_key, call.params.get("KeyMaterialId", call.the_key.material_id)
    answer = {"KeyId": arn(tools, call), "KeyMaterialId": (name or None) if key.spec == SYMMETRIC else None}
    known = {material.material_id: material for material in tools.store.materials(key)}
    if "KeyMaterialId" in call.params and name not in known:
        raise KmsError("NotFoundException", f"Key material {name} of {arn(tools, call)} does not exist.")
    if name in known and known[name].present:
        tools.store.save_material(key, replace(known[name], present=False, valid_to=None), None)
        settle(tools, key)
    return answer


def check_import(tools: Tools, call: Call) -> None:
    """GetParametersForImport: a wrapping that can carry the key's material."""
    del tools
    params = call.params
    wrapping.check_wrapping(params["WrappingAlgorithm"], params["WrappingKeySpec"], call.the_key.spec)


def _validity(call: Call) -> float | None:
    """When the material expires; None is never."""
    params = call.params
    if params.get("ExpirationModel", EXPIRES) != EXPIRES:
        if "ValidTo" in params:
            raise validation("A validTo date must not be set if the ExpirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE")
        return None
    if "ValidTo" not in params:
        raise validation("A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES")
    valid_to = float(params["ValidTo"])
    if not call.seconds < valid_to <= call.seconds + MAX_VALIDITY.total_seconds():
        raise validation(f"The validTo date must be in the future, and within {MAX_VALIDITY.days} days")
    return round(valid_to, 3)


def _unwrapped(tools: Tools, call: Call) -> bytes:
    secret = tools.store.derive(_LABEL)
    binding, wrapping_key = wrapping.open_token(call.params["ImportToken"], call.now.timestamp(), secret)
    named, _, algorithm = binding.partition(" ")
    if named != arn(tools, call):
        raise KmsError("InvalidImportTokenException", "The import token is of another key.")
    return wrapping.unwrap(wrapping_key, algorithm, call.params["EncryptedKeyMaterial"])


def _check_name(call: Call, name: str) -> None:
    wanted = call.params.get("KeyMaterialId")
    if wanted is not None and call.params.get("ImportType") == NEW:
        raise validation("KeyMaterialId cannot be combined with ImportType NEW_KEY_MATERIAL")
    if wanted is not None and wanted != name:
        raise KmsError("IncorrectKeyMaterialException", "The key material is not the one that KeyMaterialId names.")


def _check_kind(tools: Tools, call: Call, name: str, known: dict[str, Material]) -> None:
    """Which material a key takes: its first one is free; then what it has had, and new only for a rotation."""
    key, kind = call.the_key, call.params.get("ImportType", EXISTING if known else NEW)
    if kind == EXISTING and name not in known:
        raise KmsError("IncorrectKeyMaterialException", "The key material has never been imported into this key.")
    if kind != NEW or name in known or not known:
        return
    _check_more(tools, call, key, name, known)


def _check_more(tools: Tools, call: Call, key: Key, name: str, known: dict[str, Material]) -> None:
    if key.spec != SYMMETRIC:
        raise KmsError("IncorrectKeyMaterialException", "This key takes its first key material alone.")
    waiting = next((m.material_id for m in known.values() if m.pending), None)
    if waiting:
        message = (
            f"New key material (id: {name}) cannot be imported into KMS key {arn(tools, call)}, because another key "
            f"material (id: {waiting}) is pending rotation."
        )
        raise KmsError("KMSInvalidStateException", message)
