"""Multi-Region keys, in several Regions of one process (kms.md §16)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from tests.unit.kms.conftest import NewStore
from tests.unit.kms.server_harness import ACCOUNT, ROOT_ARN, RunningKms, config, refused, running
from tests.unit.kms.test_imports import put

HERE, THERE, ELSEWHERE = "us-east-1", "eu-west-1", "eu-central-1"
REGIONS = (THERE, ELSEWHERE)


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Iterator[RunningKms]:
    directory = tmp_path_factory.mktemp("kms")
    with running(config(directory, store=new_store(directory), more_regions=REGIONS)) as service:
        yield service


def at(kms: RunningKms, region: str) -> Any:
    """The administrator's client in a Region."""
    return boto3.client(
        "kms",
        endpoint_url=kms.url,
        region_name=region,
        aws_access_key_id=kms.admin_user.access_key_id,
        aws_secret_access_key=kms.admin_user.secret_access_key,
        config=Config(retries={"max_attempts": 0}),
    )


def arn(key: str, region: str) -> str:
    return f"arn:aws:kms:{region}:{ACCOUNT}:key/{key}"


@pytest.fixture
def key(kms: RunningKms) -> str:
    return str(kms.admin.create_key(MultiRegion=True)["KeyMetadata"]["KeyId"])


def described(kms: RunningKms, key: str, region: str) -> dict[str, Any]:
    return dict(at(kms, region).describe_key(KeyId=key)["KeyMetadata"])


def test_a_new_primary_describes_itself(kms: RunningKms, key: str) -> None:
    """An id of its own form, and a configuration without replicas."""
    made = described(kms, key, HERE)
    assert key.startswith("mrk-")
    assert len(key) == 36
    assert made["MultiRegion"] is True
    assert made["MultiRegionConfiguration"] == {
        "MultiRegionKeyType": "PRIMARY",
        "PrimaryKey": {"Arn": arn(key, HERE), "Region": HERE},
        "ReplicaKeys": [],
    }


def test_what_one_region_encrypts_another_decrypts(kms: RunningKms, key: str) -> None:
    """Old material and new; names, tags, descriptions and policies are each Region's own."""
    kms.admin.tag_resource(KeyId=key, Tags=[{"TagKey": "a", "TagValue": "1"}])
    before = kms.admin.encrypt(KeyId=key, Plaintext=b"before")["CiphertextBlob"]
    made = kms.admin.replicate_key(KeyId=key, ReplicaRegion=THERE, Description="copy")
    answer = made["ReplicaKeyMetadata"]
    assert (answer["KeyState"], answer["Enabled"], answer["Arn"]) == ("Creating", False, arn(key, THERE))
    assert answer["MultiRegionConfiguration"] == {
        "MultiRegionKeyType": "REPLICA",
        "PrimaryKey": {"Arn": arn(key, HERE), "Region": HERE},
        "ReplicaKeys": [{"Arn": arn(key, THERE), "Region": THERE}],
    }
    assert made["ReplicaTags"] == []
    assert json.loads(made["ReplicaPolicy"])["Id"] == "key-default-1"
    replica = described(kms, key, THERE)
    assert (replica["KeyState"], replica["Description"]) == ("Enabled", "copy")
    there = at(kms, THERE)
    assert there.decrypt(CiphertextBlob=before)["KeyId"] == arn(key, THERE)
    after = there.encrypt(KeyId=key, Plaintext=b"after")["CiphertextBlob"]
    assert kms.admin.decrypt(CiphertextBlob=after)["Plaintext"] == b"after"
    there.create_alias(AliasName="alias/of-the-copy", TargetKeyId=key)
    assert kms.admin.list_aliases(KeyId=key)["Aliases"] == []
    there.disable_key(KeyId=key)
    assert described(kms, key, HERE)["KeyState"] == "Enabled"
    with refused("NotFoundException") as error:
        there.describe_key(KeyId=arn(key, HERE))
    assert error["message"] == f"Invalid arn {HERE}"


def test_single_region_keys_stay(kms: RunningKms, key: str) -> None:
    """They are in no other Region and have no replicas; a replica has none either, and a Region has one."""
    single = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    sealed = kms.admin.encrypt(KeyId=single, Plaintext=b"x")["CiphertextBlob"]
    with refused("AccessDeniedException") as error:
        at(kms, THERE).decrypt(CiphertextBlob=sealed)
    assert error["message"].startswith("The ciphertext refers to a customer master key that does not exist")
    with refused("UnsupportedOperationException") as error:
        kms.admin.replicate_key(KeyId=single, ReplicaRegion=THERE)
    assert error["message"] == f"{arn(single, HERE)} is not a multi-region primary key."
    kms.admin.replicate_key(KeyId=key, ReplicaRegion=THERE)
    for region in (THERE, HERE):
        with refused("AlreadyExistsException"):
            kms.admin.replicate_key(KeyId=key, ReplicaRegion=region)
    with refused("UnsupportedOperationException"):
        at(kms, THERE).replicate_key(KeyId=key, ReplicaRegion=ELSEWHERE)
    with refused("UnsupportedOperationException"):
        kms.admin.replicate_key(KeyId=key, ReplicaRegion="ap-south-1")
    with refused("InvalidSignatureException"):
        at(kms, "ap-south-1").list_keys()


def test_rotation_is_the_primarys_and_everywhere(kms: RunningKms, key: str) -> None:
    """A replica cannot start it, shows its schedule, and has the new material with the old."""
    kms.admin.replicate_key(KeyId=key, ReplicaRegion=THERE)
    there = at(kms, THERE)
    for operation in (there.enable_key_rotation, there.rotate_key_on_demand):
        with refused("UnsupportedOperationException"):
            operation(KeyId=key)
    kms.admin.enable_key_rotation(KeyId=key, RotationPeriodInDays=100)
    assert there.get_key_rotation_status(KeyId=key)["RotationPeriodInDays"] == 100
    old = there.encrypt(KeyId=key, Plaintext=b"old")["CiphertextBlob"]
    kms.admin.rotate_key_on_demand(KeyId=key)
    current = {described(kms, key, region)["CurrentKeyMaterialId"] for region in (HERE, THERE)}
    assert len(current) == 1
    new = there.encrypt(KeyId=key, Plaintext=b"new")["CiphertextBlob"]
    assert kms.admin.decrypt(CiphertextBlob=new)["KeyMaterialId"] in current
    assert kms.admin.decrypt(CiphertextBlob=old)["Plaintext"] == b"old"


def test_another_region_takes_the_lead(kms: RunningKms, key: str) -> None:
    """Roles change, and with them who may replicate; both keys need the permission and must be enabled."""
    kms.admin.replicate_key(KeyId=key, ReplicaRegion=THERE)
    there = at(kms, THERE)
    there.disable_key(KeyId=key)
    with refused("DisabledException") as error:
        kms.admin.update_primary_region(KeyId=key, PrimaryRegion=THERE)
    assert error["message"] == f"{arn(key, THERE)} is disabled."
    there.enable_key(KeyId=key)
    root = {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": "kms:*", "Resource": "*"}
    deny = {"Effect": "Deny", "Principal": "*", "Action": "kms:UpdatePrimaryRegion", "Resource": "*"}
    condition = {"StringEquals": {"kms:PrimaryRegion": THERE, "kms:MultiRegionKeyType": "REPLICA"}}
    denying = {"Version": "2012-10-17", "Statement": [root, deny | {"Condition": condition}]}
    there.put_key_policy(KeyId=key, Policy=json.dumps(denying))
    with refused("AccessDeniedException") as error:
        kms.admin.update_primary_region(KeyId=key, PrimaryRegion=THERE)
    assert arn(key, THERE) in error["message"]
    there.put_key_policy(KeyId=key, Policy=json.dumps({"Version": "2012-10-17", "Statement": [root]}))
    kms.admin.update_primary_region(KeyId=key, PrimaryRegion=THERE)
    types = {r: described(kms, key, r)["MultiRegionConfiguration"]["MultiRegionKeyType"] for r in (HERE, THERE)}
    assert types == {HERE: "REPLICA", THERE: "PRIMARY"}
    there.replicate_key(KeyId=key, ReplicaRegion=ELSEWHERE)
    assert len(described(kms, key, ELSEWHERE)["MultiRegionConfiguration"]["ReplicaKeys"]) == 2
    with refused("UnsupportedOperationException"):
        kms.admin.update_primary_region(KeyId=key, PrimaryRegion=THERE)
    with refused("NotFoundException"):
        there.update_primary_region(KeyId=key, PrimaryRegion="ap-south-1")


def test_a_replica_needs_permission_to_be_made(kms: RunningKms, key: str) -> None:
    """kms:ReplicateKey on the primary does not do without kms:CreateKey in the replica's Region."""
    root = {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": "kms:*", "Resource": "*"}
    condition = {"StringEquals": {"kms:ReplicaRegion": THERE}}
    allow = {"Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Action": "kms:ReplicateKey", "Resource": "*"}
    policy = {"Version": "2012-10-17", "Statement": [root, allow | {"Condition": condition}]}
    kms.admin.put_key_policy(KeyId=key, Policy=json.dumps(policy))
    with refused("AccessDeniedException") as error:
        kms.app.replicate_key(KeyId=key, ReplicaRegion=THERE)
    assert "perform: kms:CreateKey on resource: *" in error["message"]
    with refused("AccessDeniedException") as error:
        kms.app.replicate_key(KeyId=key, ReplicaRegion=ELSEWHERE)
    assert "perform: kms:ReplicateKey" in error["message"]


def test_an_imported_key_is_imported_everywhere(kms: RunningKms) -> None:
    """A replica waits for the same material, takes no other, and opens what the primary sealed."""
    key = kms.admin.create_key(MultiRegion=True, Origin="EXTERNAL")["KeyMetadata"]["KeyId"]
    material = os.urandom(32)
    put(kms, key, material)
    kms.admin.replicate_key(KeyId=key, ReplicaRegion=THERE)
    assert described(kms, key, THERE)["KeyState"] == "PendingImport"
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]

    class There:
        admin = at(kms, THERE)

    with refused("IncorrectKeyMaterialException"):
        put(There, key, os.urandom(32))  # type: ignore[arg-type]
    put(There, key, material)  # type: ignore[arg-type]
    assert There.admin.decrypt(CiphertextBlob=sealed)["Plaintext"] == b"x"


def test_a_primary_goes_after_its_replicas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It waits for the last of them, and then for its own window."""
    ahead = timedelta()

    def now() -> datetime:
        return datetime.now(UTC) + ahead

    def today(*, remove_tzinfo: bool = True) -> datetime:
        return now().replace(tzinfo=None) if remove_tzinfo else now()

    monkeypatch.setattr("botocore.auth.get_current_datetime", today)
    with running(config(tmp_path, more_regions=REGIONS, clock=now)) as kms:
        key = kms.admin.create_key(MultiRegion=True)["KeyMetadata"]["KeyId"]
        kms.admin.replicate_key(KeyId=key, ReplicaRegion=THERE)
        planned = kms.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=9)
        assert planned["KeyState"] == "PendingReplicaDeletion"
        assert "DeletionDate" not in planned
        waiting = described(kms, key, HERE)
        assert (waiting["KeyState"], waiting["PendingDeletionWindowInDays"]) == ("PendingReplicaDeletion", 9)
        last = at(kms, THERE).schedule_key_deletion(KeyId=key, PendingWindowInDays=7)["DeletionDate"]
        ahead = timedelta(days=8)
        with refused("NotFoundException"):
            at(kms, THERE).describe_key(KeyId=key)
        going = described(kms, key, HERE)
        assert going["KeyState"] == "PendingDeletion"
        assert going["DeletionDate"] - last == timedelta(days=9)
        ahead = timedelta(days=17)
        with refused("NotFoundException"):
            kms.admin.describe_key(KeyId=key)
