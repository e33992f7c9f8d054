"""What the KMS does by itself is on the record too (kms.md §24): rotations, expired material, keys that go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.kms.conftest import NewStore
from tests.unit.kms.in_process import InProcess, in_process
from tests.unit.kms.test_states_of_pairs import wrapped

from alcove.kms.model import kms_model
from alcove.kms.service import Service
from alcove.kms.upkeep import housekeeping
from alcove.kms.users import add_user


class Clock:
    """A clock that a test sets."""

    ahead = timedelta()

    def __call__(self) -> datetime:
        """The time."""
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kms(tmp_path: Path, clock: Clock, new_store: NewStore) -> Iterator[InProcess]:
    with in_process(tmp_path, clock=clock, url=new_store(tmp_path)) as service:
        yield service


def events(kms: InProcess) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, Region and details of every service event."""
    found = [record for record in kms.records if record["eventType"] == "AwsServiceEvent"]
    for record in found:
        assert record["resources"][0]["ARN"] == record["serviceEventDetails"]["keyId"]
        assert (record["readOnly"], record["userIdentity"]["invokedBy"]) == (False, "AWS Internal")
    return [(record["eventName"], record["awsRegion"], record["serviceEventDetails"]) for record in found]


def test_rotations(kms: InProcess, clock: Clock) -> None:
    """On demand and automatic, in every Region of the key, with the old and the new material."""
    key = kms.call("CreateKey", MultiRegion=True)["KeyMetadata"]
    kms.call("ReplicateKey", KeyId=key["KeyId"], ReplicaRegion="eu-west-1")
    kms.call("RotateKeyOnDemand", KeyId=key["KeyId"])
    made = events(kms)
    assert {(name, region) for name, region, _ in made} == {("RotateKey", "us-east-1"), ("RotateKey", "eu-west-1")}
    assert {d["previousKeyMaterialId"] for _, _, d in made} == {key["CurrentKeyMaterialId"]}
    assert {d["rotationType"] for _, _, d in made} == {"ON_DEMAND"}
    kms.call("EnableKeyRotation", KeyId=key["KeyId"], RotationPeriodInDays=90)
    clock.ahead = timedelta(days=91)
    current = kms.call("DescribeKey", KeyId=key["KeyId"])["KeyMetadata"]["CurrentKeyMaterialId"]
    assert {(d["rotationType"], d["currentKeyMaterialId"]) for _, _, d in events(kms)[2:]} == {("AUTOMATIC", current)}


def test_expired_material(kms: InProcess, clock: Clock) -> None:
    """Once, when it is noticed."""
    key = kms.call("CreateKey", Origin="EXTERNAL")["KeyMetadata"]["KeyId"]
    ends = (clock() + timedelta(days=1)).timestamp()
    name = kms.call("ImportKeyMaterial", ValidTo=ends, **wrapped(kms, key))["KeyMaterialId"]
    clock.ahead = timedelta(days=2)
    for _ in range(2):
        assert kms.call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyState"] == "PendingImport"
    ((event, region, details),) = events(kms)
    assert (event, region, details["keyMaterialId"]) == ("DeleteExpiredKeyMaterial", "us-east-1", name)


def test_keys_that_go(kms: InProcess, clock: Clock) -> None:
    """When they are erased, not when they are scheduled for it."""
    key = kms.call("CreateKey")["KeyMetadata"]
    kms.call("ScheduleKeyDeletion", KeyId=key["KeyId"], PendingWindowInDays=7)
    housekeeping(kms.tools, clock().timestamp())
    assert events(kms) == []
    for days in (8, 9):
        housekeeping(kms.tools, (clock() + timedelta(days=days)).timestamp())
    assert events(kms) == [("DeleteKey", "us-east-1", {"keyId": key["Arn"]})]


def test_keys_are_on_the_record_before_their_files_are_tidied(
    kms: InProcess, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk without the room for it keeps no record back; a log that takes none keeps the key."""
    key = kms.call("CreateKey")["KeyMetadata"]
    kms.call("ScheduleKeyDeletion", KeyId=key["KeyId"], PendingWindowInDays=7)
    later = (clock() + timedelta(days=8)).timestamp()
    with pytest.raises(OSError, match="no space"):
        housekeeping(replace(kms.tools, events=full), later)
    assert kms.store.family(key["KeyId"])
    monkeypatch.setattr(type(kms.store), "sweep", full)
    with pytest.raises(OSError, match="no space"):
        housekeeping(kms.tools, later)
    assert events(kms) == [("DeleteKey", "us-east-1", {"keyId": key["Arn"]})]
    assert not kms.store.family(key["KeyId"])


def test_what_a_refused_call_did_is_on_no_record(kms: InProcess, clock: Clock) -> None:
    """A call that writes is one transaction: when it is refused, the rotation that was due is not made in it either."""
    stranger = add_user(kms.store, "stranger")
    key = kms.call("CreateKey")["KeyMetadata"]
    kms.call("EnableKeyRotation", KeyId=key["KeyId"], RotationPeriodInDays=90)
    clock.ahead = timedelta(days=91)
    answer = kms.send("DisableKey", json.dumps({"KeyId": key["KeyId"]}).encode(), stranger)
    assert json.loads(answer.body)["__type"] == "AccessDeniedException"
    assert kms.store.family(key["KeyId"])[0].material_id == key["CurrentKeyMaterialId"]
    assert events(kms) == []
    kms.call("DisableKey", KeyId=key["KeyId"])
    assert [name for name, _, _ in events(kms)] == ["RotateKey"]
    assert [record["eventName"] for record in kms.records[-2:]] == ["RotateKey", "DisableKey"]


def full(*_: object) -> None:
    """A disk without room."""
    raise OSError("no space left on device")


def test_nothing_happens_off_the_record(kms: InProcess, clock: Clock) -> None:
    """A rotation that cannot be recorded is not made, and the call fails."""
    key = kms.call("CreateKey")["KeyMetadata"]
    kms.call("EnableKeyRotation", KeyId=key["KeyId"], RotationPeriodInDays=90)
    clock.ahead = timedelta(days=91)
    tools = replace(kms.tools, events=full)
    broken = replace(kms, service=Service(tools, kms_model(), (), kms.records.append, clock), tools=tools)
    answer = broken.send("DescribeKey", json.dumps({"KeyId": key["KeyId"]}).encode())
    assert (answer.status, json.loads(answer.body)["__type"]) == (500, "KMSInternalException")
    (stored,) = kms.store.family(key["KeyId"])
    assert stored.material_id == key["CurrentKeyMaterialId"]
