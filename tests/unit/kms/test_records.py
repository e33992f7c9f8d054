"""The audit record of every kind of call, member by member (kms.md §24)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.kms.in_process import HOST, PEER, InProcess, in_process

pytestmark = pytest.mark.slow

WRITES = {  # everything that changes something; the rest is read-only, all cryptography among it
    "CancelKeyDeletion", "CreateAlias", "CreateGrant", "CreateKey", "DeleteAlias", "DisableKey", "DisableKeyRotation",
    "EnableKey", "EnableKeyRotation", "PutKeyPolicy", "ReplicateKey", "RetireGrant", "RevokeGrant",
    "RotateKeyOnDemand", "ScheduleKeyDeletion", "TagResource", "UntagResource", "UpdateAlias", "UpdateKeyDescription",
}  # fmt: skip


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with in_process(tmp_path_factory.mktemp("kms")) as service:
        yield service


def made(kms: InProcess, operation: str, **members: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record of a call, and its answer."""
    answer = kms.send(operation, json.dumps(members).encode())
    (record,) = [r for r in kms.records[-3:] if r.get("requestID") == answer.request_id]
    return record, json.loads(answer.body or b"{}")


def test_a_record_has_cloudtrails_members(kms: InProcess) -> None:
    """Who, what, when, from where, and under which ids the caller knows it."""
    record, answer = made(kms, "CreateKey", Tags=[{"TagKey": "Room", "TagValue": "1"}], Description="d")
    key = answer["KeyMetadata"]
    assert set(record) == {
        "eventVersion", "userIdentity", "eventTime", "eventSource", "eventName", "awsRegion", "sourceIPAddress",
        "userAgent", "requestParameters", "responseElements", "additionalEventData", "requestID", "eventID",
        "readOnly", "resources", "eventType", "recipientAccountId",
    }  # fmt: skip
    assert record["userIdentity"] == {
        "type": "IAMUser",
        "principalId": kms.store.users()[0].user_id,
        "arn": kms.admin.arn,
        "accountId": "111122223333",
        "accessKeyId": kms.admin.access_key_id,
        "userName": "admin",
    }
    assert (record["sourceIPAddress"], record["userAgent"]) == (PEER.address, PEER.user_agent)
    assert (record["eventSource"], record["eventType"]) == ("kms.amazonaws.com", "AwsApiCall")
    assert record["requestParameters"] == {"tags": [{"tagKey": "Room", "tagValue": "1"}], "description": "d"}
    metadata = record["responseElements"]["keyMetadata"]
    assert (metadata["keyId"], metadata["aWSAccountId"]) == (key["KeyId"], "111122223333")
    assert None not in metadata.values()
    assert record["resources"] == [{"accountId": "111122223333", "type": "AWS::KMS::Key", "ARN": key["Arn"]}]
    assert HOST.split(".")[1] == record["awsRegion"]


def test_parameters_and_resources(kms: InProcess) -> None:
    """Contexts with their own keys; the keys of a call, the source first; never a secret, a token or a policy."""
    one, other = (kms.call("CreateKey")["KeyMetadata"] for _ in range(2))
    context = {"App": "Demo", "PIN": "é"}
    record, sealed = made(kms, "Encrypt", KeyId=one["KeyId"], Plaintext="c2VjcmV0", EncryptionContext=context)
    assert record["requestParameters"] == {"keyId": one["KeyId"], "encryptionContext": context}
    assert record["responseElements"] is None
    blob = sealed["CiphertextBlob"]
    record, _ = made(kms, "Decrypt", CiphertextBlob=blob, EncryptionContext=context)
    assert record["requestParameters"] == {"encryptionContext": context, "encryptionAlgorithm": "SYMMETRIC_DEFAULT"}
    moved = {"SourceEncryptionContext": context, "DestinationKeyId": other["KeyId"]}
    record, _ = made(kms, "ReEncrypt", CiphertextBlob=blob, **moved)
    assert [resource["ARN"] for resource in record["resources"]] == [one["Arn"], other["Arn"]]
    assert record["resources"][0] == {"accountId": "111122223333", "type": "AWS::KMS::Key", "ARN": one["Arn"]}
    record, _ = made(kms, "GenerateRandom", NumberOfBytes=8)
    assert (record["requestParameters"], record["resources"]) == (None, [])
    constraints = {"EncryptionContextSubset": {"App": "Demo"}}
    asked = {"KeyId": one["KeyId"], "GranteePrincipal": "111122223333", "Operations": ["Decrypt"]}
    record, grant = made(kms, "CreateGrant", Constraints=constraints, **asked)
    assert record["requestParameters"]["constraints"] == {"encryptionContextSubset": {"App": "Demo"}}
    assert record["responseElements"] == {"grantId": grant["GrantId"]}
    record, _ = made(kms, "RetireGrant", GrantToken=grant["GrantToken"])
    assert record["additionalEventData"]["grantId"] == grant["GrantId"]
    everything = json.dumps(kms.records)
    assert "c2VjcmV0" not in everything
    assert grant["GrantToken"] not in everything
    assert blob not in everything


def test_refused_and_dry_calls_are_recorded(kms: InProcess) -> None:
    """With the class and the text that the caller got, and for a refusal by policy which condition decided."""
    key = kms.call("CreateKey")["KeyMetadata"]["KeyId"]
    record, _ = made(kms, "Encrypt", KeyId=key, Plaintext="eA==", DryRun=True)
    assert record["errorCode"] == "DryRunOperationException"
    record, answer = made(kms, "EnableKey", KeyId="nonsense")
    assert (record["errorCode"], record["errorMessage"]) == ("NotFoundException", answer["message"])
    record, answer = made(kms, "DescribeKey", KeyId=5)
    assert (record["errorCode"], record["requestParameters"]) == ("SerializationException", None)
    root = {"Effect": "Allow", "Principal": {"AWS": "111122223333"}, "Action": "kms:*", "Resource": "*"}
    deny = {"Sid": "small hours", "Effect": "Deny", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*"}
    late = {"StringEquals": {"kms:EncryptionContext:App": "Demo"}}
    policy = {"Version": "2012-10-17", "Statement": [root, {**deny, "Condition": late}]}
    kms.call("PutKeyPolicy", KeyId=key, Policy=json.dumps(policy))
    record, _ = made(kms, "Encrypt", KeyId=key, Plaintext="eA==", EncryptionContext={"App": "Demo"})
    decision = record["additionalEventData"]["decision"]
    assert (record["errorCode"], decision["statement"]) == ("AccessDeniedException", "small hours")
    condition = {"operator": "StringEquals", "key": "kms:EncryptionContext:App", "expected": ["Demo"]}
    assert decision["conditions"] == [{"statement": "small hours", **condition, "actual": "Demo"}]


def test_a_mistake_of_ours_is_recorded_by_its_place(kms: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which line it was, and not a word of what was at hand there: that could be a secret."""

    def broken(*_arguments: object) -> bytes:
        raise ValueError("material: c2VjcmV0")

    monkeypatch.setattr("alcove.kms.operations.crypto.seal", broken)
    key = kms.call("CreateKey")["KeyMetadata"]["KeyId"]
    answer = kms.send("Encrypt", json.dumps({"KeyId": key, "Plaintext": "eA=="}).encode())
    assert (answer.status, json.loads(answer.body)["__type"]) == (500, "KMSInternalException")
    assert kms.records[-1]["additionalEventData"]["because"].startswith("ValueError at test_records.py:")
    assert b"c2VjcmV0" not in answer.body
    assert "c2VjcmV0" not in json.dumps(kms.records[-1])


def test_what_changes_something_is_not_read_only(kms: InProcess) -> None:
    """As CloudTrail has it: every cryptographic operation reads, whatever it makes."""
    key = kms.call("CreateKey", MultiRegion=True)["KeyMetadata"]["KeyId"]
    kms.call("CreateAlias", AliasName="alias/a", TargetKeyId=key)
    kms.call("UpdateAlias", AliasName="alias/a", TargetKeyId=key)
    kms.call("DeleteAlias", AliasName="alias/a")
    grant = {"KeyId": key, "GranteePrincipal": "111122223333", "Operations": ["Decrypt"]}
    kms.call("RevokeGrant", KeyId=key, GrantId=kms.call("CreateGrant", **grant)["GrantId"])
    for operation in ("EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand", "DisableKey", "EnableKey"):
        kms.call(operation, KeyId=key)
    kms.call("UntagResource", KeyId=key, TagKeys=["a"])
    kms.call("TagResource", KeyId=key, Tags=[{"TagKey": "a", "TagValue": "b"}])
    kms.call("UpdateKeyDescription", KeyId=key, Description="d")
    kms.call("ReplicateKey", KeyId=key, ReplicaRegion="eu-west-1")
    kms.call("ScheduleKeyDeletion", KeyId=key)
    kms.call("CancelKeyDeletion", KeyId=key)
    calls = [r for r in kms.records if r["eventType"] == "AwsApiCall"]
    for record in calls:
        assert record["readOnly"] == (record["eventName"] not in WRITES), record["eventName"]
    assert {r["eventName"] for r in calls if not r["readOnly"]} >= WRITES - {"PutKeyPolicy", "RetireGrant"}
