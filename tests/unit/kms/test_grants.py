"""Grants, as clients see them (kms.md §17)."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from tests.unit.kms.server_harness import ACCOUNT, ROOT_ARN, RunningKms, refused

ARN = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/"
ROOT = {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": "kms:*", "Resource": "*"}


def grant(kms: RunningKms, key: str, *operations: str, **options: Any) -> dict[str, Any]:
    """A grant to the application's user."""
    options = {"GranteePrincipal": kms.app_user.arn} | options
    return dict(kms.admin.create_grant(KeyId=key, Operations=list(operations), **options))


def put(kms: RunningKms, key: str, *statements: dict[str, Any]) -> None:
    policy = {"Version": "2012-10-17", "Statement": [ROOT, *statements]}
    kms.admin.put_key_policy(KeyId=key, Policy=json.dumps(policy))


def test_a_grant_allows_its_operations_until_it_is_revoked(kms: RunningKms, key: str) -> None:
    """What the policies leave open, it allows; nothing else; the record names it."""
    with refused("AccessDeniedException"):
        kms.app.encrypt(KeyId=key, Plaintext=b"x")
    made = grant(kms, key, "Encrypt", "DescribeKey")
    assert re.fullmatch("[0-9a-f]{64}", made["GrantId"])
    sealed = kms.app.encrypt(KeyId=key, Plaintext=b"x", GrantTokens=[made["GrantToken"]])["CiphertextBlob"]
    kms.app.describe_key(KeyId=key)
    decision = kms.records()[-1]["additionalEventData"]["decision"]
    assert (decision["why"], decision["statement"]) == ("a grant allows", made["GrantId"])
    with refused("AccessDeniedException"):
        kms.app.decrypt(CiphertextBlob=sealed)
    with refused("DryRunOperationException"):
        kms.admin.revoke_grant(KeyId=key, GrantId=made["GrantId"], DryRun=True)
    kms.admin.revoke_grant(KeyId=key, GrantId=made["GrantId"])
    with refused("AccessDeniedException"):
        kms.app.encrypt(KeyId=key, Plaintext=b"x")
    with refused("NotFoundException"):
        kms.admin.revoke_grant(KeyId=key, GrantId=made["GrantId"])
    with refused("InvalidGrantTokenException"):
        kms.admin.encrypt(KeyId=key, Plaintext=b"x", GrantTokens=[made["GrantToken"]])


def test_a_deny_beats_a_grant(kms: RunningKms, key: str) -> None:
    """In the key policy, with its conditions: so it can close this side door of attested keys."""
    grant(kms, key, "Decrypt")
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    kms.app.decrypt(CiphertextBlob=sealed)
    condition = {"StringNotEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": "ab" * 48}}
    deny = {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*", "Condition": condition}
    put(kms, key, deny)
    with refused("AccessDeniedException") as error:
        kms.app.decrypt(CiphertextBlob=sealed)
    assert "with an explicit deny in a resource-based policy" in error["message"]


@pytest.mark.parametrize(
    ("kind", "context", "allowed"),
    [
        ("EncryptionContextEquals", {"a": "1", "b": "2"}, True),
        ("EncryptionContextEquals", {"a": "1", "b": "2", "c": "3"}, False),
        ("EncryptionContextEquals", {"a": "1"}, False),
        ("EncryptionContextSubset", {"a": "1", "b": "2", "c": "3"}, True),
        ("EncryptionContextSubset", {"a": "1"}, False),
        ("EncryptionContextSubset", {"A": "1", "b": "2"}, False),
        ("EncryptionContextSubset", {"a": "1", "b": "two"}, False),
        ("EncryptionContextSubset", {}, False),
    ],
)
def test_constraints_bind_the_context(
    kms: RunningKms, key: str, kind: str, context: dict[str, str], *, allowed: bool
) -> None:
    """Equals is exactly these pairs, Subset at least these, with their case; DescribeKey has no context to bind."""
    grant(kms, key, "Encrypt", "DescribeKey", Constraints={kind: {"a": "1", "b": "2"}})
    kms.app.describe_key(KeyId=key)
    if allowed:
        kms.app.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=context)
    else:
        with refused("AccessDeniedException"):
            kms.app.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=context)


def test_a_grant_covers_half_of_a_re_encryption(kms: RunningKms, key: str) -> None:
    """ReEncryptFrom on one key, ReEncryptTo on the other, each with its own context."""
    other = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"a": "1"})["CiphertextBlob"]
    options = {"CiphertextBlob": sealed, "SourceEncryptionContext": {"a": "1"}, "DestinationKeyId": other}
    grant(kms, key, "ReEncryptFrom", Constraints={"EncryptionContextEquals": {"a": "1"}})
    with refused("AccessDeniedException") as error:
        kms.app.re_encrypt(**options)
    assert "kms:ReEncryptTo" in error["message"]
    grant(kms, other, "ReEncryptTo")
    kms.app.re_encrypt(**options)


def test_a_name_makes_a_repeat_the_same_grant(kms: RunningKms, key: str) -> None:
    """With a token of its own; another operation, or no name, is another grant."""
    first, again = (grant(kms, key, "Encrypt", Name="once") for _ in range(2))
    assert first["GrantId"] == again["GrantId"]
    assert first["GrantToken"] != again["GrantToken"]
    other = grant(kms, key, "Decrypt", Name="once")
    plain = [grant(kms, key, "Encrypt")["GrantId"] for _ in range(2)]
    assert len({first["GrantId"], other["GrantId"], *plain}) == 4


def test_lists_show_grants_and_no_tokens(kms: RunningKms, key: str) -> None:
    """AWS's members, filters, pages; ListRetirableGrants is by who may retire."""
    made = grant(
        kms, key, "Encrypt", Name="n", RetiringPrincipal=kms.admin_user.arn,
        Constraints={"EncryptionContextSubset": {"a": "1"}},
    )  # fmt: skip
    entry = kms.admin.list_grants(KeyId=key)["Grants"][0]
    assert entry.pop("CreationDate")
    assert entry == {
        "KeyId": ARN + key,
        "GrantId": made["GrantId"],
        "Name": "n",
        "GranteePrincipal": kms.app_user.arn,
        "RetiringPrincipal": kms.admin_user.arn,
        "IssuingAccount": ROOT_ARN,
        "Operations": ["Encrypt"],
        "Constraints": {"EncryptionContextSubset": {"a": "1"}},
    }
    others = {grant(kms, key, "Encrypt", GranteePrincipal=kms.admin_user.arn)["GrantId"] for _ in range(4)}
    pages = list(kms.admin.get_paginator("list_grants").paginate(KeyId=key, PaginationConfig={"PageSize": 2}))
    assert [len(page["Grants"]) for page in pages] == [2, 2, 1]
    assert {g["GrantId"] for page in pages for g in page["Grants"]} == others | {made["GrantId"]}
    by_grantee = kms.admin.list_grants(KeyId=key, GranteePrincipal=kms.app_user.arn)["Grants"]
    assert [g["GrantId"] for g in by_grantee] == [made["GrantId"]]
    assert len(kms.admin.list_grants(KeyId=key, GrantId=made["GrantId"])["Grants"]) == 1
    retirable = kms.admin.list_retirable_grants(RetiringPrincipal=kms.admin_user.arn)["Grants"]
    assert [g["GrantId"] for g in retirable] == [made["GrantId"]]
    assert made["GrantToken"] not in kms.config.audit.read_text()


def test_who_may_retire(kms: RunningKms, key: str) -> None:
    """The retiring principal, and the grantee when RetireGrant is granted; the key policy cannot give it."""
    allow = {"Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Action": "kms:RetireGrant", "Resource": "*"}
    put(kms, key, allow)
    strange = grant(kms, key, "Encrypt")
    with refused("AccessDeniedException"):
        kms.app.retire_grant(GrantToken=strange["GrantToken"])
    for made in (grant(kms, key, "RetireGrant"), grant(kms, key, "Encrypt", RetiringPrincipal=kms.app_user.arn)):
        with refused("DryRunOperationException"):
            kms.app.retire_grant(GrantToken=made["GrantToken"], DryRun=True)
        kms.app.retire_grant(KeyId=ARN + key, GrantId=made["GrantId"])
        assert kms.records()[-1]["additionalEventData"]["grantId"] == made["GrantId"]
    kms.admin.retire_grant(GrantToken=strange["GrantToken"])
    assert kms.admin.list_grants(KeyId=key)["Grants"] == []
    for wrong in ({}, {"KeyId": ARN + key}, {"GrantToken": strange["GrantToken"], "GrantId": "a" * 64}):
        with refused("ValidationException") as error:
            kms.app.retire_grant(**wrong)
        assert error["message"] == "Grant token OR (grant ID, key ID) must be specified"


def test_a_deny_stops_retiring(kms: RunningKms, key: str) -> None:
    """Whoever the grant names."""
    made = grant(kms, key, "Encrypt", RetiringPrincipal=kms.app_user.arn)
    put(kms, key, {"Effect": "Deny", "Principal": "*", "Action": "kms:RetireGrant", "Resource": "*"})
    with refused("AccessDeniedException"):
        kms.app.retire_grant(GrantToken=made["GrantToken"])


def test_a_grant_to_grant_gives_no_more_than_it_has(kms: RunningKms, key: str) -> None:
    """Fewer operations and tighter constraints; never more, never looser."""
    subset = {"EncryptionContextSubset": {"a": "1"}}
    grant(kms, key, "CreateGrant", "Encrypt", Constraints=subset)
    options = {"KeyId": key, "GranteePrincipal": kms.admin_user.arn}
    for constraints in (subset, {"EncryptionContextEquals": {"a": "1", "b": "2"}}):
        kms.app.create_grant(**options, Operations=["Encrypt"], Constraints=constraints)
    refusals: list[tuple[list[str], dict[str, Any]]] = [
        (["Encrypt", "Decrypt"], {"Constraints": subset}),
        (["Encrypt"], {}),
        (["Encrypt"], {"Constraints": {"EncryptionContextSubset": {"b": "2"}}}),
    ]
    for operations, constraints in refusals:
        with refused("AccessDeniedException"):
            kms.app.create_grant(**options, Operations=operations, **constraints)


def test_grants_that_cannot_be(kms: RunningKms, key: str) -> None:
    """Operations that the key lacks, both constraints, constraints on a pair, people who are not there."""
    pair = kms.admin.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    grant(kms, pair, "Sign", "Verify", "GetPublicKey", "DescribeKey")
    both = {"EncryptionContextSubset": {"a": "1"}, "EncryptionContextEquals": {"a": "1"}}
    many = {"EncryptionContextSubset": {str(n): "" for n in range(9)}}
    for name, operation, options in (
        (key, "Sign", {}),
        (pair, "Encrypt", {}),
        (pair, "Sign", {"Constraints": {"EncryptionContextSubset": {"a": "1"}}}),
        (key, "Encrypt", {"Constraints": both}),
        (key, "Encrypt", {"Constraints": many}),
        (key, "Encrypt", {"Constraints": {"EncryptionContextEquals": {"a": "x" * 385}}}),
    ):
        with refused("ValidationException"):
            grant(kms, name, operation, **options)
    for name in (f"arn:aws:iam::{ACCOUNT}:user/nobody", f"arn:aws:iam::{ACCOUNT}:group/g", "nobody"):
        with refused("InvalidArnException"):
            grant(kms, key, "Encrypt", GranteePrincipal=name)
    kms.admin.disable_key(KeyId=key)
    with refused("DisabledException"):
        grant(kms, key, "Encrypt")
    with refused("DryRunOperationException"):
        grant(kms, pair, "Sign", DryRun=True)


def test_a_token_is_known_or_refused(kms: RunningKms, key: str) -> None:
    """Changed in any byte, it is nobody's."""
    token = grant(kms, key, "Encrypt")["GrantToken"]
    raw = base64.b64decode(token)
    for place in (0, 20, 40, len(raw) - 1):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        with refused("InvalidGrantTokenException"):
            kms.admin.encrypt(KeyId=key, Plaintext=b"x", GrantTokens=[base64.b64encode(changed).decode()])
    with refused("InvalidGrantTokenException"):
        kms.admin.describe_key(KeyId=key, GrantTokens=["x"])


def test_policies_see_what_a_grant_would_give(kms: RunningKms, key: str) -> None:
    """kms:GrantOperations, GranteePrincipal, GrantConstraintType, GrantIsForAWSResource, RetiringPrincipal."""
    condition = {
        "ForAllValues:StringEquals": {"kms:GrantOperations": ["Encrypt", "Decrypt"]},
        "StringEquals": {
            "kms:GranteePrincipal": kms.admin_user.arn,
            "kms:GrantConstraintType": "EncryptionContextSubset",
            "kms:EncryptionContext:a": "1",
            "kms:RetiringPrincipal": kms.admin_user.arn,
        },
        "Bool": {"kms:GrantIsForAWSResource": "false"},
    }
    allow = {"Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Action": "kms:CreateGrant", "Resource": "*"}
    put(kms, key, allow | {"Condition": condition})
    good: dict[str, Any] = {
        "KeyId": key,
        "GranteePrincipal": kms.admin_user.arn,
        "RetiringPrincipal": kms.admin_user.arn,
        "Operations": ["Encrypt"],
        "Constraints": {"EncryptionContextSubset": {"a": "1"}},
    }
    kms.app.create_grant(**good)
    for change in (
        {"Operations": ["Encrypt", "GenerateDataKey"]},
        {"GranteePrincipal": kms.app_user.arn},
        {"RetiringPrincipal": kms.app_user.arn},
        {"Constraints": {"EncryptionContextEquals": {"a": "1"}}},
        {"Constraints": {"EncryptionContextSubset": {"a": "2"}}},
    ):
        with refused("AccessDeniedException"):
            kms.app.create_grant(**good | change)


def test_a_grant_to_the_account_delegates(kms: RunningKms, key: str) -> None:
    """Without an account statement the administrator has nothing; such a grant makes the identity policy count."""
    grant(kms, key, "Encrypt", GranteePrincipal=ROOT_ARN)
    own = {"Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Action": "kms:PutKeyPolicy", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [own]})
    kms.admin.put_key_policy(KeyId=key, Policy=policy, BypassPolicyLockoutSafetyCheck=True)
    kms.admin.encrypt(KeyId=key, Plaintext=b"x")
    with refused("AccessDeniedException"):
        kms.admin.describe_key(KeyId=key)
    with refused("AccessDeniedException"):
        kms.app.encrypt(KeyId=key, Plaintext=b"x")
