"""Aliases and tags, as clients see them (kms.md §18, §19)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.kms.server_harness import ACCOUNT, ROOT_ARN, RunningKms, refused

ARN = f"arn:aws:kms:us-east-1:{ACCOUNT}:"


def names(kms: RunningKms, key: str) -> list[str]:
    return [alias["AliasName"] for alias in kms.admin.list_aliases(KeyId=key)["Aliases"]]


def allow(kms: RunningKms, key: str, *statements: dict[str, Any]) -> None:
    """The key policy: the account decides, and the application's user gets these statements."""
    root = {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": "kms:*", "Resource": "*"}
    own = [{"Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Resource": "*"} | s for s in statements]
    kms.admin.put_key_policy(KeyId=key, Policy=json.dumps({"Version": "2012-10-17", "Statement": [root, *own]}))


def test_an_alias_names_a_key_wherever_it_may(kms: RunningKms, key: str) -> None:
    """By name and by ARN; answers carry the key's own ARN."""
    kms.admin.create_alias(AliasName="alias/app/one", TargetKeyId=key)
    for name in ("alias/app/one", f"{ARN}alias/app/one"):
        sealed = kms.admin.encrypt(KeyId=name, Plaintext=b"x")
        assert sealed["KeyId"] == f"{ARN}key/{key}"
        assert kms.admin.decrypt(KeyId=name, CiphertextBlob=sealed["CiphertextBlob"])["Plaintext"] == b"x"
        assert kms.admin.describe_key(KeyId=name)["KeyMetadata"]["KeyId"] == key
    with refused("NotFoundException") as error:
        kms.admin.disable_key(KeyId="alias/app/one")
    assert error["message"] == "Invalid keyId 'alias/app/one'"
    with refused("NotFoundException"):
        kms.admin.encrypt(KeyId="alias/App/one", Plaintext=b"x")


def test_an_alias_is_listed_moved_and_removed(kms: RunningKms, key: str) -> None:
    """Entries have AWS's members; the old key forgets it, the new one has it, and in the end nobody."""
    other = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    kms.admin.create_alias(AliasName="alias/moves", TargetKeyId=f"{ARN}key/{key}")
    entry = kms.admin.list_aliases(KeyId=key)["Aliases"][0]
    assert set(entry) == {"AliasName", "AliasArn", "TargetKeyId", "CreationDate", "LastUpdatedDate"}
    assert (entry["AliasArn"], entry["TargetKeyId"]) == (f"{ARN}alias/moves", key)
    kms.admin.update_alias(AliasName="alias/moves", TargetKeyId=other)
    assert (names(kms, key), names(kms, other)) == ([], ["alias/moves"])
    moved = kms.admin.list_aliases(KeyId=other)["Aliases"][0]
    assert moved["CreationDate"] == entry["CreationDate"]
    assert moved["LastUpdatedDate"] > entry["LastUpdatedDate"]
    kms.admin.delete_alias(AliasName="alias/moves")
    assert names(kms, other) == []
    with refused("NotFoundException") as error:
        kms.admin.delete_alias(AliasName="alias/moves")
    assert error["message"] == f"Alias {ARN}alias/moves is not found."


def test_names_that_cannot_be(kms: RunningKms, key: str) -> None:
    """No prefix, AWS's own prefix, a colon, a name that is taken, a target that is an alias."""
    with refused("ValidationException") as error:
        kms.admin.create_alias(AliasName="plain", TargetKeyId=key)
    assert error["message"].startswith('Alias must start with the prefix "alias/".')
    for name in ("alias/aws/s3", "alias/a:b", "alias/"):
        with refused("InvalidAliasNameException"):
            kms.admin.create_alias(AliasName=name, TargetKeyId=key)
    kms.admin.create_alias(AliasName="alias/taken", TargetKeyId=key)
    with refused("AlreadyExistsException") as error:
        kms.admin.create_alias(AliasName="alias/taken", TargetKeyId=key)
    assert error["message"] == f"An alias with the name {ARN}alias/taken already exists"
    with refused("NotFoundException"):
        kms.admin.create_alias(AliasName="alias/second", TargetKeyId="alias/taken")


def test_an_alias_stays_with_its_kind_of_key(kms: RunningKms, key: str) -> None:
    """A target of another type or usage, or one that is going, is refused; from one that is going it may leave."""
    kms.admin.create_alias(AliasName="alias/kind", TargetKeyId=key)
    hmac = kms.admin.create_key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")["KeyMetadata"]["KeyId"]
    with refused("KMSInvalidStateException"):
        kms.admin.update_alias(AliasName="alias/kind", TargetKeyId=hmac)
    kms.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    with refused("KMSInvalidStateException"):
        kms.admin.create_alias(AliasName="alias/late", TargetKeyId=key)
    other = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    kms.admin.update_alias(AliasName="alias/kind", TargetKeyId=other)
    with refused("KMSInvalidStateException") as error:
        kms.admin.update_alias(AliasName="alias/kind", TargetKeyId=key)
    assert error["message"] == f"{ARN}key/{key} is pending deletion."


def test_a_key_has_fifty_aliases_in_pages(kms: RunningKms, key: str) -> None:
    """The paginator sees each once; the 51st is over the limit; a page has 100 at most."""
    for number in range(50):
        kms.admin.create_alias(AliasName=f"alias/many/{number:02}", TargetKeyId=key)
    pages = list(kms.admin.get_paginator("list_aliases").paginate(KeyId=key, PaginationConfig={"PageSize": 20}))
    assert [len(page["Aliases"]) for page in pages] == [20, 20, 10]
    assert [a["AliasName"] for page in pages for a in page["Aliases"]] == [f"alias/many/{n:02}" for n in range(50)]
    with refused("LimitExceededException"):
        kms.admin.create_alias(AliasName="alias/many/50", TargetKeyId=key)
    with refused("InvalidMarkerException"):  # a marker is good for its own list alone
        kms.admin.list_aliases(Marker=pages[0]["NextMarker"])
    with refused("ValidationException") as error:
        kms.admin.list_aliases(Limit=101)
    assert "Value '101' at 'limit'" in error["message"]


def test_an_alias_needs_permission_on_both(kms: RunningKms, key: str) -> None:
    """The key policy alone does not do: the alias itself needs an identity policy."""
    allow(kms, key, {"Action": "kms:*"})
    with refused("AccessDeniedException") as error:
        kms.app.create_alias(AliasName="alias/app-own", TargetKeyId=key)
    assert f"kms:CreateAlias on resource: {ARN}alias/app-own" in error["message"]


def test_the_aliases_of_a_key_are_listed_by_identity_policy(kms: RunningKms) -> None:
    """The key policy has no say in it, as AWS has none: neither one that is silent, nor one that allows."""
    own = {"Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Action": "kms:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [own]})
    key = kms.admin.create_key(Policy=policy, BypassPolicyLockoutSafetyCheck=True)["KeyMetadata"]["KeyId"]
    assert names(kms, key) == []
    with refused("AccessDeniedException") as error:
        kms.app.list_aliases(KeyId=key)
    assert "no identity-based policy allows the kms:ListAliases action" in error["message"]


def test_a_policy_sees_the_alias_of_the_request(kms: RunningKms, key: str) -> None:
    """kms:RequestAlias is there when the key is named by an alias, also by its ARN, and not otherwise."""
    kms.admin.create_alias(AliasName="alias/door", TargetKeyId=key)
    kms.admin.create_alias(AliasName="alias/window", TargetKeyId=key)
    condition = {"StringEquals": {"kms:RequestAlias": "alias/door"}}
    allow(kms, key, {"Action": "kms:Encrypt", "Condition": condition})
    for name in ("alias/door", f"{ARN}alias/door"):
        kms.app.encrypt(KeyId=name, Plaintext=b"x")
    for name in ("alias/window", key):
        with refused("AccessDeniedException"):
            kms.app.encrypt(KeyId=name, Plaintext=b"x")


def test_tags_are_set_replaced_and_removed(kms: RunningKms) -> None:
    """In the order in which they came; a new value keeps its place; removing what is not there is no error."""
    tags = [{"TagKey": name, "TagValue": "1"} for name in ("b", "a", "c")]
    key = kms.admin.create_key(Tags=tags[:1])["KeyMetadata"]["KeyId"]
    kms.admin.tag_resource(KeyId=key, Tags=tags[1:])
    kms.admin.tag_resource(KeyId=key, Tags=[{"TagKey": "b", "TagValue": ""}])
    assert kms.admin.list_resource_tags(KeyId=key)["Tags"] == [{"TagKey": "b", "TagValue": ""}, *tags[1:]]
    pages = list(kms.admin.get_paginator("list_resource_tags").paginate(KeyId=key, PaginationConfig={"PageSize": 2}))
    assert [[tag["TagKey"] for tag in page["Tags"]] for page in pages] == [["b", "a"], ["c"]]
    kms.admin.untag_resource(KeyId=key, TagKeys=["a", "nothing"])
    assert [tag["TagKey"] for tag in kms.admin.list_resource_tags(KeyId=key)["Tags"]] == ["b", "c"]


@pytest.mark.parametrize(
    ("tags", "kind", "message"),
    [
        ([("a", "1"), ("a", "2")], "TagException", "Duplicate tag keys"),
        ([("AWS:a", "1")], "TagException", "Tags beginning with aws: are reserved"),
        ([(f"t{n}", "1") for n in range(51)], "TagException", "Too many tags"),
        ([(f"t{n}", "1") for n in range(50)], "TagException", "Too many tags"),
    ],
)
def test_tags_that_cannot_be(kms: RunningKms, key: str, tags: list[tuple[str, str]], kind: str, message: str) -> None:
    """Twice the same, AWS's own, and more than fifty in all."""
    kms.admin.tag_resource(KeyId=key, Tags=[{"TagKey": "first", "TagValue": "1"}])
    with refused(kind) as error:
        kms.admin.tag_resource(KeyId=key, Tags=[{"TagKey": name, "TagValue": value} for name, value in tags])
    assert error["message"] == message
    assert len(kms.admin.list_resource_tags(KeyId=key)["Tags"]) == 1


def test_no_tag_hides_another_from_a_policy(kms: RunningKms) -> None:
    """Policies compare their names without case, so two that differ in nothing else are refused as duplicates."""
    key = kms.admin.create_key(Tags=[{"TagKey": "class", "TagValue": "secret"}])["KeyMetadata"]["KeyId"]
    other = [{"TagKey": "CLASS", "TagValue": "public"}]
    with refused("TagException") as error:
        kms.admin.tag_resource(KeyId=key, Tags=other)
    assert error["message"] == "Duplicate tag keys"
    with refused("TagException"):
        kms.admin.create_key(Tags=[*other, {"TagKey": "class", "TagValue": "secret"}])
    kms.admin.untag_resource(KeyId=key, TagKeys=["class"])
    kms.admin.tag_resource(KeyId=key, Tags=other)


def test_tags_need_a_key_that_stays(kms: RunningKms, key: str) -> None:
    """A disabled key takes tags, one that waits for its deletion does not, and shows them."""
    kms.admin.disable_key(KeyId=key)
    kms.admin.tag_resource(KeyId=key, Tags=[{"TagKey": "a", "TagValue": "1"}])
    kms.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    with refused("KMSInvalidStateException"):
        kms.admin.tag_resource(KeyId=key, Tags=[{"TagKey": "b", "TagValue": "1"}])
    with refused("KMSInvalidStateException"):
        kms.admin.untag_resource(KeyId=key, TagKeys=["a"])
    assert len(kms.admin.list_resource_tags(KeyId=key)["Tags"]) == 1


def test_policies_see_the_tags_of_a_request(kms: RunningKms, key: str) -> None:
    """aws:RequestTag and aws:TagKeys, for setting and for removing."""
    condition = {"StringEquals": {"aws:RequestTag/Team": "blue"}, "ForAllValues:StringEquals": {"aws:TagKeys": "Team"}}
    removing = {"ForAllValues:StringEquals": {"aws:TagKeys": ["Team"]}}
    allow(
        kms,
        key,
        {"Action": "kms:TagResource", "Condition": condition},
        {"Action": "kms:UntagResource", "Condition": removing},
    )
    kms.app.tag_resource(KeyId=key, Tags=[{"TagKey": "Team", "TagValue": "blue"}])
    for tags in ([("Team", "red")], [("Team", "blue"), ("Owner", "me")]):
        with refused("AccessDeniedException"):
            kms.app.tag_resource(KeyId=key, Tags=[{"TagKey": n, "TagValue": v} for n, v in tags])
    kms.app.untag_resource(KeyId=key, TagKeys=["Team"])
    with refused("AccessDeniedException"):
        kms.app.untag_resource(KeyId=key, TagKeys=["Team", "Owner"])
