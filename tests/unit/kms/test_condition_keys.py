"""Every condition key of the table in kms.md §6.1, as a policy meets it, and where it is absent.

A user may do everything but what one Deny stops, whose only condition is on the key in question. The call is refused
exactly when the request has that key with that value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.unit.kms.in_process import PEER, InProcess, in_process

from alcove.kms.policy.catalogue import is_known, is_never_present
from alcove.kms.users import ADMIN_POLICY, NewUser, add_user

pytestmark = pytest.mark.slow

ACCOUNT = "111122223333"
ME = f"arn:aws:iam::{ACCOUNT}:user/probe"
MARK = {"Message": "eA=="}
CONTEXT = {"EncryptionContext": {"App": "demo"}}
DENIED = "AccessDeniedException"


@dataclass(frozen=True)
class World:
    """The service, the user that is stopped, and a key of each kind by its name."""

    kms: InProcess
    probe: NewUser
    names: dict[str, str]

    def outcome(self, condition: dict[str, Any], operation: str, members: dict[str, Any]) -> str:
        """The class of the answer to a call, when a Deny has this condition."""
        deny = {"Effect": "Deny", "Action": "kms:*", "Resource": "*", "Condition": condition}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
        assert self.kms.store.save_user_policies("probe", [ADMIN_POLICY, policy])
        filled = {name: self.names.get(str(value), value) for name, value in members.items()}
        answer = self.kms.send(operation, json.dumps(filled).encode(), self.probe)
        return "" if answer.status == 200 else str(json.loads(answer.body)["__type"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with in_process(tmp_path_factory.mktemp("kms")) as kms:
        kinds: dict[str, dict[str, Any]] = {
            "$key": {"Tags": [{"TagKey": "Room", "TagValue": "1"}]},
            "$other": {},
            "$family": {"MultiRegion": True},
            "$external": {"Origin": "EXTERNAL"},
            "$signer": {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"},
            "$mac": {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"},
            "$ecdh": {"KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT"},
            "$kem": {"KeySpec": "ML_KEM_768", "KeyUsage": "ENCAPSULATE_DECAPSULATE"},
        }
        names = {name: kms.call("CreateKey", **kind)["KeyMetadata"]["KeyId"] for name, kind in kinds.items()}
        kms.call("CreateAlias", AliasName="alias/one", TargetKeyId=names["$key"])
        kms.call("ReplicateKey", KeyId=names["$family"], ReplicaRegion="eu-west-1")
        names["$blob"] = kms.call("Encrypt", KeyId=names["$key"], Plaintext="eA==", **CONTEXT)["CiphertextBlob"]
        yield World(kms, add_user(kms.store, "probe", admin=True), names)


GRANT = {"KeyId": "$key", "GranteePrincipal": ACCOUNT, "Operations": ["Decrypt"]}
TO_SERVICE = {"GranteeServicePrincipal": "a.amazonaws.com", "RetiringServicePrincipal": "b.amazonaws.com"}
SUBSET = {"Constraints": {"EncryptionContextSubset": {"App": "demo"}}}
SOURCE = {"Constraints": {"SourceArn": f"arn:aws:s3:us-east-1:{ACCOUNT}:b"}}
MOVED = {"CiphertextBlob": "$blob", "SourceEncryptionContext": {"App": "demo"}, "DestinationKeyId": "$other"}
ELSEWHERE = {"DestinationEncryptionContext": {"App": "demo"}}
IMPORT = {"KeyId": "$external", "ImportToken": "eA==", "EncryptedKeyMaterial": "eA=="}
PUT = {"KeyId": "$key", "Policy": "{}"}
BYPASS = {"BypassPolicyLockoutSafetyCheck": True}
WAY = {"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_3072"}
KEY, SIGN = {"KeyId": "$key"}, {"KeyId": "$signer", "SigningAlgorithm": "ECDSA_SHA_256", **MARK}
PAIR = {"KeyId": "$key", "KeyPairSpec": "ECC_NIST_P256"}
TAGS = {"Tags": [{"TagKey": "Room", "TagValue": "2"}]}
PRESENT: list[tuple[str, str, str, str, dict[str, Any]]] = [  # operator, key, value, operation, parameters
    ("Bool", "kms:BypassPolicyLockoutSafetyCheck", "true", "PutKeyPolicy", {**PUT, **BYPASS}),
    ("Bool", "kms:BypassPolicyLockoutSafetyCheck", "true", "CreateKey", BYPASS),
    ("StringEquals", "kms:CallerAccount", ACCOUNT, "ListKeys", {}),
    ("StringEquals", "kms:CustomerMasterKeySpec", "HMAC_256", "DescribeKey", {"KeyId": "$mac"}),
    ("StringEquals", "kms:CustomerMasterKeyUsage", "SIGN_VERIFY", "DescribeKey", {"KeyId": "$signer"}),
    ("StringEquals", "kms:DataKeyPairSpec", "ECC_NIST_P256", "GenerateDataKeyPair", PAIR),
    ("StringEquals", "kms:DataKeyPairSpec", "ECC_NIST_P256", "GenerateDataKeyPairWithoutPlaintext", PAIR),
    ("StringEquals", "kms:EncapsulationAlgorithm", "ML_KEM", "Encapsulate",
     {"KeyId": "$kem", "EncapsulationAlgorithm": "ML_KEM"}),
    ("StringEquals", "kms:KeyAgreementAlgorithm", "ECDH", "DeriveSharedSecret",
     {"KeyId": "$ecdh", "KeyAgreementAlgorithm": "ECDH", "PublicKey": "eA=="}),
    ("StringEquals", "kms:MacAlgorithm", "HMAC_SHA_256", "GenerateMac",
     {"KeyId": "$mac", "MacAlgorithm": "HMAC_SHA_256", **MARK}),
    ("StringEquals", "kms:SigningAlgorithm", "ECDSA_SHA_256", "Sign", SIGN),
    ("StringEquals", "kms:MessageType", "RAW", "Sign", SIGN),
    ("StringEquals", "kms:MessageType", "DIGEST", "Sign", {**SIGN, "MessageType": "DIGEST"}),
    *(("StringEquals", "kms:EncryptionAlgorithm", "SYMMETRIC_DEFAULT", operation, {"KeyId": "$key", **more})
      for operation, more in (
          ("Encrypt", {"Plaintext": "eA=="}), ("Decrypt", {"CiphertextBlob": "$blob"}),
          ("GenerateDataKey", {"KeySpec": "AES_256"}), ("GenerateDataKeyWithoutPlaintext", {"KeySpec": "AES_256"}),
          ("GenerateDataKeyPair", {"KeyPairSpec": "ECC_NIST_P256"}))),
    ("StringEquals", "kms:EncryptionContext:app", "demo", "Encrypt", {**KEY, **CONTEXT, "Plaintext": "eA=="}),
    ("StringEquals", "kms:EncryptionContext:APP", "demo", "ReEncrypt", {**MOVED, **ELSEWHERE}),
    ("StringEquals", "kms:EncryptionContext:App", "demo", "CreateGrant", {**GRANT, **SUBSET}),
    ("ForAnyValue:StringEquals", "kms:EncryptionContextKeys", "App", "Encrypt",
     {**KEY, **CONTEXT, "Plaintext": "eA=="}),
    ("StringEquals", "kms:ExpirationModel", "KEY_MATERIAL_DOES_NOT_EXPIRE", "ImportKeyMaterial",
     {**IMPORT, "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}),
    ("ArnEquals", "kms:GrantConstraintSourceArn", f"arn:aws:s3:us-east-1:{ACCOUNT}:*", "CreateGrant",
     {**GRANT, **SOURCE}),
    ("StringEquals", "kms:GrantConstraintType", "EncryptionContextSubset", "CreateGrant", {**GRANT, **SUBSET}),
    ("Bool", "kms:GrantIsForAWSResource", "false", "CreateGrant", GRANT),
    ("Bool", "kms:GrantIsForAWSResource", "false", "ListGrants", KEY),
    ("ForAnyValue:StringEquals", "kms:GrantOperations", "Decrypt", "CreateGrant", GRANT),
    ("StringEquals", "kms:GranteePrincipal", ACCOUNT, "CreateGrant", GRANT),
    ("StringEquals", "kms:RetiringPrincipal", ME, "CreateGrant", {**GRANT, "RetiringPrincipal": ME}),
    ("StringEquals", "kms:GranteeServicePrincipal", "a.amazonaws.com", "CreateGrant", {**GRANT, **TO_SERVICE}),
    ("StringEquals", "kms:RetiringServicePrincipal", "b.amazonaws.com", "CreateGrant", {**GRANT, **TO_SERVICE}),
    ("StringEquals", "kms:KeyOrigin", "AWS_KMS", "CreateKey", {}),
    ("StringEquals", "kms:KeyOrigin", "EXTERNAL", "DescribeKey", {"KeyId": "$external"}),
    ("StringEquals", "kms:KeySpec", "SYMMETRIC_DEFAULT", "CreateKey", {}),
    ("StringEquals", "kms:KeySpec", "ML_KEM_768", "ListGrants", {"KeyId": "$kem"}),
    ("StringEquals", "kms:KeyUsage", "ENCRYPT_DECRYPT", "CreateKey", {}),
    ("StringEquals", "kms:KeyUsage", "KEY_AGREEMENT", "GetKeyPolicy", {"KeyId": "$ecdh"}),
    ("Bool", "kms:MultiRegion", "false", "CreateKey", {}),
    ("Bool", "kms:MultiRegion", "true", "DescribeKey", {"KeyId": "$family"}),
    ("StringEquals", "kms:MultiRegionKeyType", "PRIMARY", "CreateKey", {"MultiRegion": True}),
    ("StringEquals", "kms:MultiRegionKeyType", "PRIMARY", "DescribeKey", {"KeyId": "$family"}),
    ("StringEquals", "kms:PolicyName", "default", "GetKeyPolicy", KEY),
    ("StringEquals", "kms:PolicyName", "default", "PutKeyPolicy", PUT),
    ("StringEquals", "kms:PrimaryRegion", "eu-west-1", "UpdatePrimaryRegion",
     {"KeyId": "$family", "PrimaryRegion": "eu-west-1"}),
    ("StringEquals", "kms:ReplicaRegion", "eu-west-1", "ReplicateKey",
     {"KeyId": "$family", "ReplicaRegion": "eu-west-1"}),
    ("Bool", "kms:ReEncryptOnSameKey", "false", "ReEncrypt", MOVED),
    ("Bool", "kms:ReEncryptOnSameKey", "true", "ReEncrypt", {**MOVED, "DestinationKeyId": "$key"}),
    ("StringEquals", "kms:RequestAlias", "alias/one", "DescribeKey", {"KeyId": "alias/one"}),
    ("StringEquals", "kms:RequestAlias", "alias/one", "Encrypt",
     {"KeyId": f"arn:aws:kms:us-east-1:{ACCOUNT}:alias/one", "Plaintext": "eA=="}),
    ("ForAnyValue:StringEquals", "kms:ResourceAliases", "alias/one", "DescribeKey", KEY),
    ("NumericEquals", "kms:RotationPeriodInDays", "100", "EnableKeyRotation", {**KEY, "RotationPeriodInDays": 100}),
    ("NumericEquals", "kms:ScheduleKeyDeletionPendingWindowInDays", "9", "ScheduleKeyDeletion",
     {**KEY, "PendingWindowInDays": 9}),
    ("NumericEquals", "kms:TrailingDaysWithoutKeyUsage", "0", "DisableKey", KEY),
    ("NumericEquals", "kms:TrailingDaysWithoutKeyUsage", "0", "ScheduleKeyDeletion", KEY),
    ("DateEquals", "kms:ValidTo", "2030-01-01T00:00:00Z", "ImportKeyMaterial", {**IMPORT, "ValidTo": 1893456000}),
    ("StringEquals", "kms:WrappingAlgorithm", "RSAES_OAEP_SHA_256", "GetParametersForImport",
     {"KeyId": "$external", **WAY}),
    ("StringEquals", "kms:WrappingKeySpec", "RSA_3072", "GetParametersForImport", {"KeyId": "$external", **WAY}),
    ("StringEquals", "aws:RequestTag/room", "2", "CreateKey", TAGS),
    ("StringEquals", "aws:RequestTag/Room", "2", "TagResource", {**KEY, **TAGS}),
    ("ForAnyValue:StringEquals", "aws:TagKeys", "Room", "TagResource", {**KEY, **TAGS}),
    ("ForAnyValue:StringEquals", "aws:TagKeys", "Room", "UntagResource", {**KEY, "TagKeys": ["Room"]}),
    ("StringEquals", "aws:ResourceTag/Room", "1", "DescribeKey", KEY),
    ("ArnEquals", "aws:PrincipalArn", ME, "ListKeys", {}),
    ("StringEquals", "aws:PrincipalAccount", ACCOUNT, "ListKeys", {}),
    ("StringEquals", "aws:PrincipalType", "User", "ListKeys", {}),
    ("StringEquals", "aws:username", "probe", "ListKeys", {}),
    ("StringLike", "aws:userid", "AIDA*", "ListKeys", {}),
    ("IpAddress", "aws:SourceIp", f"{PEER.address}/32", "ListKeys", {}),
    ("Bool", "aws:SecureTransport", "true", "ListKeys", {}),
    ("DateGreaterThan", "aws:CurrentTime", "2020-01-01T00:00:00Z", "ListKeys", {}),
    ("NumericGreaterThan", "aws:EpochTime", "1600000000", "ListKeys", {}),
    ("StringEquals", "aws:RequestedRegion", "us-east-1", "ListKeys", {}),
    ("StringEquals", "aws:ResourceAccount", ACCOUNT, "DescribeKey", KEY),
    ("StringEquals", "aws:UserAgent", PEER.user_agent, "ListKeys", {}),
    ("Bool", "aws:ViaAWSService", "false", "ListKeys", {}),
    ("Bool", "aws:PrincipalIsAWSService", "false", "ListKeys", {}),
]  # fmt: skip
ABSENT: list[tuple[str, str, dict[str, Any]]] = [
    ("kms:BypassPolicyLockoutSafetyCheck", "PutKeyPolicy", PUT),
    ("kms:CallerAccount", "ListRetirableGrants", {"RetiringPrincipal": ME}),
    ("kms:EncryptionContextKeys", "Encrypt", {**KEY, "Plaintext": "eA=="}),
    ("kms:EncryptionAlgorithm", "Sign", SIGN),
    ("kms:EncryptionContext:App", "DescribeKey", KEY),
    ("kms:ExpirationModel", "ImportKeyMaterial", IMPORT),
    ("kms:GrantIsForAWSResource", "RetireGrant", {"GrantToken": "eA=="}),
    ("kms:GranteePrincipal", "ListGrants", {**KEY, "GranteePrincipal": ACCOUNT}),
    ("kms:MultiRegionKeyType", "DescribeKey", KEY),
    ("kms:RequestAlias", "DescribeKey", KEY),
    ("kms:RequestAlias", "CreateAlias", {"AliasName": "alias/one", "TargetKeyId": "$key"}),
    ("kms:ResourceAliases", "DescribeKey", {"KeyId": "$other"}),
    ("kms:RotationPeriodInDays", "EnableKeyRotation", KEY),
    ("kms:TrailingDaysWithoutKeyUsage", "EnableKey", KEY),
    ("kms:ViaService", "DescribeKey", KEY),
    ("kms:RecipientAttestation:PCR0", "GenerateRandom", {"NumberOfBytes": 1}),
    ("aws:RequestTag/Room", "DescribeKey", KEY),
    ("aws:ResourceTag/Room", "DescribeKey", {"KeyId": "$other"}),
    ("aws:TokenIssueTime", "ListKeys", {}),
    ("aws:MultiFactorAuthPresent", "ListKeys", {}),
    ("aws:SourceArn", "ListKeys", {}),
    ("aws:SourceVpce", "ListKeys", {}),
]


@pytest.mark.parametrize("row", PRESENT, ids=lambda row: f"{row[1]} of {row[3]}")
def test_a_key_has_its_value(world: World, row: tuple[str, str, str, str, dict[str, Any]]) -> None:
    """A Deny on exactly that value stops the call; one on its absence does not decide it."""
    operator, key, value, operation, members = row
    assert world.outcome({operator: {key: value}}, operation, members) == DENIED
    assert world.outcome({"Null": {key: "true"}}, operation, members) != DENIED
    assert is_known(key)


@pytest.mark.parametrize(("key", "operation", "members"), ABSENT)
def test_a_key_is_absent(world: World, key: str, operation: str, members: dict[str, Any]) -> None:
    """A Deny on its being there does not stop the call."""
    assert world.outcome({"Null": {key: "false"}}, operation, members) != DENIED
    assert is_known(key) or is_never_present(key)
