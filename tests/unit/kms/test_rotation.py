"""Rotation, by hand and by the clock, as clients see it (kms.md §14)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.kms.server_harness import ACCOUNT, RunningKms, config, refused, running

ARN = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/"


class Clock:
    """The service's time, and boto3's."""

    ahead = timedelta()

    def __call__(self) -> datetime:
        """The time, so far ahead."""
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    def today(*, remove_tzinfo: bool = True) -> datetime:
        return clock().replace(tzinfo=None) if remove_tzinfo else clock()

    monkeypatch.setattr("botocore.auth.get_current_datetime", today)
    return clock


def rotations(client: Any, key: str, **options: Any) -> list[dict[str, Any]]:
    return list(client.list_key_rotations(KeyId=key, **options)["Rotations"])


def test_a_schedule_is_set_changed_and_ended(kms: RunningKms, key: str) -> None:
    """Off: the ARN and false alone; on: period and date, 365 days unless another number is given."""
    off = kms.admin.get_key_rotation_status(KeyId=key)
    assert {k: v for k, v in off.items() if k != "ResponseMetadata"} == {
        "KeyId": ARN + key,
        "KeyRotationEnabled": False,
    }
    for days, options in ((365, {}), (90, {"RotationPeriodInDays": 90})):
        kms.admin.enable_key_rotation(KeyId=key, **options)
        status = kms.admin.get_key_rotation_status(KeyId=key)
        assert (status["KeyRotationEnabled"], status["RotationPeriodInDays"]) == (True, days)
        away = status["NextRotationDate"] - datetime.now(UTC)
        assert timedelta(days=days) - timedelta(minutes=1) < away <= timedelta(days=days)
    kms.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    assert kms.admin.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is False
    kms.admin.cancel_key_deletion(KeyId=key)
    assert kms.admin.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is True
    kms.admin.enable_key(KeyId=key)
    kms.admin.disable_key_rotation(KeyId=key)
    assert kms.admin.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is False
    with refused("ValidationException") as error:
        kms.admin.enable_key_rotation(KeyId=key, RotationPeriodInDays=2561)
    assert "Member must have value less than or equal to 2560" in error["message"]


def test_old_material_decrypts_after_25_rotations(kms: RunningKms, key: str) -> None:
    """Every generation opens and names its own material; the 26th rotation is over the limit."""
    sealed = [kms.admin.encrypt(KeyId=key, Plaintext=b"0")["CiphertextBlob"]]
    for number in range(1, 26):
        assert kms.admin.rotate_key_on_demand(KeyId=key)["KeyId"] == ARN + key
        sealed.append(kms.admin.encrypt(KeyId=key, Plaintext=str(number).encode())["CiphertextBlob"])
    with refused("LimitExceededException") as error:
        kms.admin.rotate_key_on_demand(KeyId=key)
    assert error["message"].startswith("The on-demand rotations limit has been reached for the given keyId.")
    opened = [kms.admin.decrypt(CiphertextBlob=blob) for blob in sealed]
    assert [o["Plaintext"] for o in opened] == [str(n).encode() for n in range(26)]
    used = [o["KeyMaterialId"] for o in opened]
    assert len(set(used)) == 26
    everything = rotations(kms.admin, key, IncludeKeyMaterial="ALL_KEY_MATERIAL")
    assert [r["KeyMaterialId"] for r in everything] == used
    assert [r["KeyMaterialState"] for r in everything] == ["NON_CURRENT"] * 25 + ["CURRENT"]
    assert "RotationDate" not in everything[0]
    assert kms.admin.describe_key(KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"] == used[-1]
    pages = list(kms.admin.get_paginator("list_key_rotations").paginate(KeyId=key, PaginationConfig={"PageSize": 10}))
    assert [len(page["Rotations"]) for page in pages] == [10, 10, 5]
    listed = [r for page in pages for r in page["Rotations"]]
    assert [r["KeyMaterialId"] for r in listed] == used[1:]
    assert {r["RotationType"] for r in listed} == {"ON_DEMAND"}
    moved = kms.admin.re_encrypt(CiphertextBlob=sealed[0], DestinationKeyId=key)
    assert (moved["SourceKeyMaterialId"], moved["DestinationKeyMaterialId"]) == (used[0], used[-1])


def test_keys_that_do_not_rotate(kms: RunningKms, key: str) -> None:
    """Pairs and MAC keys: an error without text, and a status that is off; disabled and leaving keys."""
    pair = kms.admin.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    assert kms.admin.get_key_rotation_status(KeyId=pair)["KeyRotationEnabled"] is False
    for operation in (kms.admin.enable_key_rotation, kms.admin.rotate_key_on_demand, kms.admin.list_key_rotations):
        with refused("UnsupportedOperationException") as error:
            operation(KeyId=pair)
        assert error["message"] == ""
    kms.admin.disable_key(KeyId=key)
    for operation in (kms.admin.enable_key_rotation, kms.admin.disable_key_rotation, kms.admin.rotate_key_on_demand):
        with refused("DisabledException"):
            operation(KeyId=key)
    kms.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    with refused("KMSInvalidStateException"):
        kms.admin.rotate_key_on_demand(KeyId=key)


def test_the_clock_rotates(kms: RunningKms, clock: Clock, tmp_path: Any) -> None:
    """Due keys rotate once whenever they are next used; disabled ones when they are enabled again."""
    with running(config(tmp_path, clock=clock)) as service:
        admin = service.admin
        key, idle = (admin.create_key()["KeyMetadata"]["KeyId"] for _ in range(2))
        old = admin.encrypt(KeyId=key, Plaintext=b"old")["CiphertextBlob"]
        for one in (key, idle):
            admin.enable_key_rotation(KeyId=one, RotationPeriodInDays=90)
        planned = admin.get_key_rotation_status(KeyId=key)["NextRotationDate"]
        admin.disable_key(KeyId=idle)
        clock.ahead = timedelta(days=90) - timedelta(minutes=10)
        assert rotations(admin, key) == []
        with refused("ConflictException"):
            admin.rotate_key_on_demand(KeyId=key)
        clock.ahead = timedelta(days=200)  # two periods: the missed one is not made up for
        opened = admin.decrypt(CiphertextBlob=old)
        new = admin.encrypt(KeyId=key, Plaintext=b"new")["CiphertextBlob"]
        made = rotations(admin, key)
        assert [r["RotationType"] for r in made] == ["AUTOMATIC"]
        assert opened["Plaintext"] == b"old"
        current = admin.decrypt(CiphertextBlob=new)["KeyMaterialId"]
        assert opened["KeyMaterialId"] != current == made[0]["KeyMaterialId"]
        after = admin.get_key_rotation_status(KeyId=key)["NextRotationDate"]
        assert after - planned == timedelta(days=180)
        assert rotations(admin, idle) == []
        admin.enable_key(KeyId=idle)
        assert [r["RotationType"] for r in rotations(admin, idle)] == ["AUTOMATIC"]


def test_policies_see_the_period(kms: RunningKms, key: str) -> None:
    """kms:RotationPeriodInDays is a number."""
    policy = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},'
        '"Action":"kms:*","Resource":"*"},{"Effect":"Deny","Principal":"*","Action":"kms:EnableKeyRotation",'
        '"Resource":"*","Condition":{"NumericGreaterThan":{"kms:RotationPeriodInDays":"180"}}}]}'
    )
    kms.admin.put_key_policy(KeyId=key, Policy=policy)
    with refused("AccessDeniedException"):
        kms.admin.enable_key_rotation(KeyId=key, RotationPeriodInDays=181)
    kms.admin.enable_key_rotation(KeyId=key, RotationPeriodInDays=180)
