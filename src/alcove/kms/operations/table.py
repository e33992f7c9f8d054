"""Which operations there are, and what each needs before it runs (kms.md §2.2, §11).

Core: a table. A row says where the key comes from, in which states the key must be, which checks come after
authorization, and whether the audit log calls it read-only. What has no row is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from alcove.kms.call import Call, Tools
from alcove.kms.keys import Needs
from alcove.kms.operations import (
    admin,
    aliases,
    crypto,
    fitness,
    granting,
    imports,
    pairs,
    reencrypt,
    regions,
    rotation,
    tags,
)
from alcove.kms.resolve import Source

Handler = Callable[[Tools, Call], dict[str, Any]]
Check = Callable[[Tools, Call], None]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row."""

    run: Handler
    source: Source
    needs: Needs = Needs.ANY
    read_only: bool = True
    checks: tuple[Check, ...] = ()


_ENABLED, _WRITING = Needs.ENABLED, Needs.NOT_DELETING
_KEY, _ID = Source.ANY_NAME, Source.ID
_SIZED = (fitness.wrapping, crypto.check_data_key_size)
_IMPORTING = (fitness.imported, fitness.not_deleting)
_ROTATION = (fitness.rotating, fitness.generated, fitness.leading, fitness.enabled)
_PAIR = (fitness.wrapping, fitness.pair_spec)

OPERATIONS: Final[dict[str, Operation]] = {
    "CancelKeyDeletion": Operation(admin.cancel_key_deletion, _ID, Needs.DELETING, read_only=False),
    "CreateAlias": Operation(
        aliases.create_alias, Source.NEW_ALIAS, _WRITING, read_only=False, checks=(aliases.check_new_name,)
    ),
    "CreateGrant": Operation(granting.create_grant, _ID, _ENABLED, read_only=False, checks=(granting.check_grant,)),
    "CreateKey": Operation(admin.create_key, Source.NONE, read_only=False),
    "Decapsulate": Operation(pairs.decapsulate, _KEY, _ENABLED, checks=(fitness.encapsulation,)),
    "Decrypt": Operation(crypto.decrypt, Source.BLOB, _ENABLED, checks=(fitness.decrypting,)),
    "DeleteAlias": Operation(aliases.delete_alias, Source.ALIAS, read_only=False),
    "DeleteImportedKeyMaterial": Operation(
        imports.delete_imported_key_material, _ID, read_only=False, checks=(fitness.imported,)
    ),
    "DeriveSharedSecret": Operation(
        pairs.derive_shared_secret, _KEY, _ENABLED, checks=(fitness.agreement, pairs.check_peer_key)
    ),
    "DescribeKey": Operation(admin.describe_key, _KEY),
    "DisableKey": Operation(admin.disable_key, _ID, Needs.SETTLED, read_only=False),
    "DisableKeyRotation": Operation(rotation.disable_key_rotation, _ID, read_only=False, checks=_ROTATION),
    "EnableKey": Operation(admin.enable_key, _ID, Needs.SETTLED, read_only=False),
    "EnableKeyRotation": Operation(rotation.enable_key_rotation, _ID, read_only=False, checks=_ROTATION),
    "Encapsulate": Operation(pairs.encapsulate, _KEY, _ENABLED, checks=(fitness.encapsulation,)),
    "Encrypt": Operation(crypto.encrypt, _KEY, _ENABLED, checks=(fitness.encrypting,)),
    "GenerateDataKey": Operation(crypto.generate_data_key, _KEY, _ENABLED, checks=_SIZED),
    "GenerateDataKeyPair": Operation(pairs.generate_data_key_pair, _KEY, _ENABLED, checks=_PAIR),
    "GenerateDataKeyPairWithoutPlaintext": Operation(
        pairs.generate_data_key_pair_without_plaintext, _KEY, _ENABLED, checks=_PAIR
    ),
    "GenerateDataKeyWithoutPlaintext": Operation(
        crypto.generate_data_key_without_plaintext, _KEY, _ENABLED, checks=_SIZED
    ),
    "GenerateMac": Operation(pairs.generate_mac, _KEY, _ENABLED, checks=(fitness.mac,)),
    "GenerateRandom": Operation(crypto.generate_random, Source.NONE),
    "GetKeyLastUsage": Operation(admin.get_key_last_usage, _ID),
    "GetKeyPolicy": Operation(admin.get_key_policy, _ID),
    "GetKeyRotationStatus": Operation(rotation.get_key_rotation_status, _ID, checks=(rotation.check_status,)),
    "GetParametersForImport": Operation(
        imports.get_parameters_for_import, _ID, checks=(*_IMPORTING, imports.check_import)
    ),
    "GetPublicKey": Operation(pairs.get_public_key, _KEY, _ENABLED, checks=(fitness.public,)),
    "ImportKeyMaterial": Operation(imports.import_key_material, _ID, read_only=False, checks=_IMPORTING),
    "ListAliases": Operation(aliases.list_aliases, Source.PERHAPS),
    "ListGrants": Operation(granting.list_grants, _ID),
    "ListKeyPolicies": Operation(admin.list_key_policies, _ID),
    "ListKeyRotations": Operation(rotation.list_key_rotations, _ID, checks=(fitness.rotating,)),
    "ListKeys": Operation(admin.list_keys, Source.NONE),
    "ListResourceTags": Operation(tags.list_resource_tags, _ID),
    "ListRetirableGrants": Operation(granting.list_retirable_grants, Source.NONE),
    "PutKeyPolicy": Operation(admin.put_key_policy, _ID, read_only=False),
    "ReEncrypt": Operation(reencrypt.re_encrypt, Source.TWO_KEYS, _ENABLED, checks=(reencrypt.check_both,)),
    "ReplicateKey": Operation(
        regions.replicate_key,
        _ID,
        read_only=False,
        checks=(regions.check_primary, fitness.enabled, regions.check_place),
    ),
    "RetireGrant": Operation(granting.retire_grant, Source.GRANT, read_only=False),
    "RevokeGrant": Operation(granting.revoke_grant, _ID, read_only=False, checks=(granting.check_known,)),
    "RotateKeyOnDemand": Operation(
        rotation.rotate_key_on_demand,
        _ID,
        read_only=False,
        checks=(fitness.rotating, fitness.leading, fitness.enabled),
    ),
    "ScheduleKeyDeletion": Operation(
        admin.schedule_key_deletion, _ID, _WRITING, read_only=False, checks=(admin.check_window,)
    ),
    "Sign": Operation(pairs.sign, _KEY, _ENABLED, checks=(fitness.signing,)),
    "TagResource": Operation(tags.tag_resource, _ID, _WRITING, read_only=False),
    "UntagResource": Operation(tags.untag_resource, _ID, _WRITING, read_only=False),
    "UpdateAlias": Operation(
        aliases.update_alias, Source.MOVED_ALIAS, read_only=False, checks=(aliases.check_new_target,)
    ),
    "UpdateKeyDescription": Operation(admin.update_key_description, _ID, _WRITING, read_only=False),
    "UpdatePrimaryRegion": Operation(
        regions.update_primary_region,
        Source.NEW_PRIMARY,
        _ENABLED,
        read_only=False,
        checks=(regions.check_primary, regions.check_other),
    ),
    "Verify": Operation(pairs.verify, _KEY, _ENABLED, checks=(fitness.signing,)),
    "VerifyMac": Operation(pairs.verify_mac, _KEY, _ENABLED, checks=(fitness.mac,)),
}
