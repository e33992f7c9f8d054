"""Every operation that has a key, in every state of the key (kms.md §11)."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.unit.kms.conftest import NewStore
from tests.unit.kms.server_harness import ACCOUNT, ROOT_ARN, RunningKms, config, running
from tests.unit.kms.test_imports import put

from alcove.kms.operations.table import OPERATIONS
from alcove.kms.resolve import Source

OK, DIS, KIS, UNS = "ok", "DisabledException", "KMSInvalidStateException", "UnsupportedOperationException"
COLUMNS = {"Enabled": 0, "Disabled": 1, "PendingDeletion": 2, "PendingReplicaDeletion": 2, "PendingImport": 3}
POLICY = json.dumps({
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": "kms:*", "Resource": "*"}],
})  # fmt: skip
TAG = {"TagKey": "a", "TagValue": "1"}
NAMES = itertools.count()

Row = tuple[str, str, str, str]
USE: Row = (OK, DIS, KIS, KIS)
ANY: Row = (OK, OK, OK, OK)
STAYS: Row = (OK, OK, KIS, OK)
SYMMETRIC: dict[str, tuple[Row, Callable[[Any, dict[str, Any]], Any]]] = {
    "CancelKeyDeletion": ((KIS, KIS, OK, KIS), lambda c, k: c.cancel_key_deletion(KeyId=k["id"])),
    "CreateAlias": (STAYS, lambda c, k: c.create_alias(AliasName=f"alias/new/{next(NAMES)}", TargetKeyId=k["id"])),
    "CreateGrant": (
        USE,
        lambda c, k: c.create_grant(KeyId=k["id"], GranteePrincipal=ROOT_ARN, Operations=["Encrypt"]),
    ),
    "Decrypt": (USE, lambda c, k: c.decrypt(CiphertextBlob=k["blob"])),
    "DeleteAlias": (ANY, lambda c, k: c.delete_alias(AliasName=k["alias"])),
    "DescribeKey": (ANY, lambda c, k: c.describe_key(KeyId=k["id"])),
    "DisableKey": ((OK, OK, KIS, KIS), lambda c, k: c.disable_key(KeyId=k["id"])),
    "DisableKeyRotation": ((OK, DIS, KIS, UNS), lambda c, k: c.disable_key_rotation(KeyId=k["id"])),
    "EnableKey": ((OK, OK, KIS, KIS), lambda c, k: c.enable_key(KeyId=k["id"])),
    "EnableKeyRotation": ((OK, DIS, KIS, UNS), lambda c, k: c.enable_key_rotation(KeyId=k["id"])),
    "Encrypt": (USE, lambda c, k: c.encrypt(KeyId=k["id"], Plaintext=b"x")),
    "GenerateDataKey": (USE, lambda c, k: c.generate_data_key(KeyId=k["id"], KeySpec="AES_256")),
    "GenerateDataKeyPair": (USE, lambda c, k: c.generate_data_key_pair(KeyId=k["id"], KeyPairSpec="ECC_NIST_P256")),
    "GenerateDataKeyPairWithoutPlaintext": (
        USE,
        lambda c, k: c.generate_data_key_pair_without_plaintext(KeyId=k["id"], KeyPairSpec="ECC_NIST_P256"),
    ),
    "GenerateDataKeyWithoutPlaintext": (
        USE,
        lambda c, k: c.generate_data_key_without_plaintext(KeyId=k["id"], KeySpec="AES_256"),
    ),
    "GetKeyPolicy": (ANY, lambda c, k: c.get_key_policy(KeyId=k["id"])),
    "GetKeyRotationStatus": ((OK, OK, OK, UNS), lambda c, k: c.get_key_rotation_status(KeyId=k["id"])),
    "ListAliases": (ANY, lambda c, k: c.list_aliases(KeyId=k["id"])),
    "ListGrants": (ANY, lambda c, k: c.list_grants(KeyId=k["id"])),
    "ListKeyPolicies": (ANY, lambda c, k: c.list_key_policies(KeyId=k["id"])),
    "ListKeyRotations": (ANY, lambda c, k: c.list_key_rotations(KeyId=k["id"])),
    "ListResourceTags": (ANY, lambda c, k: c.list_resource_tags(KeyId=k["id"])),
    "PutKeyPolicy": (ANY, lambda c, k: c.put_key_policy(KeyId=k["id"], Policy=POLICY)),
    "ReEncrypt": (USE, lambda c, k: c.re_encrypt(CiphertextBlob=k["blob"], DestinationKeyId=k["id"])),
    "RetireGrant": (ANY, lambda c, k: c.retire_grant(GrantToken=k["grant"]["GrantToken"])),
    "RevokeGrant": (ANY, lambda c, k: c.revoke_grant(KeyId=k["id"], GrantId=k["grant"]["GrantId"])),
    "RotateKeyOnDemand": (USE, lambda c, k: c.rotate_key_on_demand(KeyId=k["id"])),
    "ScheduleKeyDeletion": (STAYS, lambda c, k: c.schedule_key_deletion(KeyId=k["id"])),
    "TagResource": (STAYS, lambda c, k: c.tag_resource(KeyId=k["id"], Tags=[TAG])),
    "UntagResource": (STAYS, lambda c, k: c.untag_resource(KeyId=k["id"], TagKeys=["a"])),
    "UpdateAlias": (STAYS, lambda c, k: c.update_alias(AliasName=k["alias"], TargetKeyId=k["id"])),
    "UpdateKeyDescription": (STAYS, lambda c, k: c.update_key_description(KeyId=k["id"], Description="d")),
}
ELSEWHERE = {  # operations on other kinds of keys, whose own tests have their states
    "Decapsulate", "DeriveSharedSecret", "Encapsulate", "GenerateMac", "GetPublicKey", "Sign", "Verify", "VerifyMac",
    "DeleteImportedKeyMaterial", "GetParametersForImport", "ImportKeyMaterial", "ReplicateKey", "UpdatePrimaryRegion",
    "GetKeyLastUsage",
}  # fmt: skip


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Iterator[RunningKms]:
    directory = tmp_path_factory.mktemp("kms")
    with running(config(directory, more_regions=("eu-west-1",), store=new_store(directory))) as service:
        yield service


def prepared(kms: RunningKms, state: str) -> dict[str, Any]:
    """A key with an alias, a grant and a ciphertext, brought into a state."""
    external = state == "PendingImport"
    waits = state == "PendingReplicaDeletion"
    options = {"Origin": "EXTERNAL"} if external else {"MultiRegion": waits}
    key = kms.admin.create_key(**options)["KeyMetadata"]["KeyId"]
    if external:
        put(kms, key, os.urandom(32))
    found = {
        "id": key,
        "alias": f"alias/old/{next(NAMES)}",
        "blob": kms.admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"],
        "grant": kms.admin.create_grant(
            KeyId=key, GranteePrincipal=ROOT_ARN, Operations=["Encrypt"], RetiringPrincipal=kms.admin_user.arn
        ),
    }
    kms.admin.create_alias(AliasName=found["alias"], TargetKeyId=key)
    if state == "Disabled":
        kms.admin.disable_key(KeyId=key)
    elif state.endswith("Deletion"):
        if waits:
            kms.admin.replicate_key(KeyId=key, ReplicaRegion="eu-west-1")
        kms.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    elif external:
        kms.admin.delete_imported_key_material(KeyId=key)
    assert kms.admin.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == state
    return found


@pytest.mark.parametrize("state", COLUMNS)
@pytest.mark.parametrize("operation", sorted(SYMMETRIC))
def test_an_operation_in_a_state(kms: RunningKms, operation: str, state: str) -> None:
    """It works, or is refused with AWS's class and the key's ARN in the text, and then changes nothing."""
    row, call = SYMMETRIC[operation]
    expected, key = row[COLUMNS[state]], prepared(kms, state)
    outcome, message = OK, ""
    try:
        call(kms.admin, key)
    except ClientError as error:
        outcome, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
    assert outcome == expected, message
    if outcome != OK:
        assert f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{key['id']}" in message
        assert kms.admin.describe_key(KeyId=key["id"])["KeyMetadata"]["KeyState"] == state


def test_no_operation_is_forgotten() -> None:
    """Whatever has a key is in the table above, or on the list of those that are tested elsewhere."""
    with_key = {name for name, row in OPERATIONS.items() if row.source is not Source.NONE}
    assert with_key - set(SYMMETRIC) <= ELSEWHERE
