"""Every paginator of botocore's model walks through everything, once (kms.md §20)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import botocore.loaders
import pytest
from tests.unit.kms.server_harness import RunningKms, refused

pytestmark = pytest.mark.slow

PAGINATORS = botocore.loaders.Loader().load_service_model("kms", "paginators-1")["pagination"]
NOT_SERVED = "DescribeCustomKeyStores"


@pytest.fixture(scope="module")
def key(kms: RunningKms) -> str:
    """A key with five of everything that is listed, beside four other keys."""
    keys = [kms.admin.create_key()["KeyMetadata"]["KeyId"] for _ in range(5)]
    for number in range(5):
        kms.admin.create_alias(AliasName=f"alias/{number}", TargetKeyId=keys[0])
        kms.admin.tag_resource(KeyId=keys[0], Tags=[{"TagKey": f"{number}", "TagValue": ""}])
        kms.admin.rotate_key_on_demand(KeyId=keys[0])
        kms.admin.create_grant(
            KeyId=keys[number],
            GranteePrincipal=kms.app_user.arn,
            RetiringPrincipal=kms.admin_user.arn,
            Operations=["Decrypt"],
        )
        kms.admin.create_grant(KeyId=keys[0], GranteePrincipal=kms.app_user.arn, Operations=["Encrypt"])
    return str(keys[0])


WALKS: dict[str, tuple[int, Callable[[RunningKms, str], dict[str, Any]]]] = {  # how many there are, and of what
    "ListAliases": (5, lambda _kms, key: {"KeyId": key}),
    "ListGrants": (6, lambda _kms, key: {"KeyId": key}),
    "ListKeyPolicies": (1, lambda _kms, key: {"KeyId": key}),
    "ListKeyRotations": (5, lambda _kms, key: {"KeyId": key}),
    "ListKeys": (5, lambda _kms, _key: {}),
    "ListResourceTags": (5, lambda _kms, key: {"KeyId": key}),
    "ListRetirableGrants": (5, lambda kms, _key: {"RetiringPrincipal": kms.admin_user.arn}),
}


def walk(kms: RunningKms, operation: str, size: int, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The pages of a list, as botocore's paginator fetches them."""
    names = {api: method for method, api in kms.admin.meta.method_to_api_mapping.items()}
    return list(kms.admin.get_paginator(names[operation]).paginate(PaginationConfig={"PageSize": size}, **arguments))


@pytest.mark.parametrize("operation", sorted(WALKS))
def test_a_paginator_finds_everything_once(kms: RunningKms, key: str, operation: str) -> None:
    """Whatever the size of its pages, in one order; the last page has no marker."""
    count, arguments = WALKS[operation]
    (member,) = {PAGINATORS[operation]["result_key"]}
    whole = walk(kms, operation, 50, arguments(kms, key))[0][member]
    assert len(whole) == count
    for size in (1, 2, 5, 6):
        pages = walk(kms, operation, size, arguments(kms, key))
        assert [item for page in pages for item in page[member]] == whole
        assert len(pages) == -(-count // size)
        assert [page["Truncated"] for page in pages] == [True] * (len(pages) - 1) + [False]
        assert ["NextMarker" in page for page in pages] == [True] * (len(pages) - 1) + [False]


def test_no_paginator_is_forgotten() -> None:
    """All of the model's, but those on custom key stores."""
    assert set(WALKS) == set(PAGINATORS) - {NOT_SERVED}


def test_a_marker_is_good_for_its_list_alone(kms: RunningKms, key: str) -> None:
    """Another operation, another filter, another caller's Region, a changed character: InvalidMarkerException."""
    marker = kms.admin.list_grants(KeyId=key, Limit=1)["NextMarker"]
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (kms.admin.list_keys, {"Marker": marker}),
        (kms.admin.list_grants, {"KeyId": key, "Marker": marker, "GranteePrincipal": kms.app_user.arn}),
        (kms.admin.list_resource_tags, {"KeyId": key, "Marker": marker}),
        (kms.admin.list_grants, {"KeyId": key, "Marker": marker[:-1]}),
        (kms.admin.list_grants, {"KeyId": key, "Marker": "A" + marker[1:] if marker[0] != "A" else "B" + marker[1:]}),
        (kms.admin.list_grants, {"KeyId": key, "Marker": json.dumps({"x": 1})}),
    ]
    for method, arguments in wrong:
        with refused("InvalidMarkerException"):
            method(**arguments)


@pytest.mark.parametrize(
    ("operation", "most"),
    [
        ("ListKeys", 1000),
        ("ListAliases", 100),
        ("ListGrants", 100),
        ("ListResourceTags", 50),
        ("ListKeyRotations", 1000),
    ],
)
def test_a_page_has_a_largest_size(kms: RunningKms, key: str, operation: str, most: int) -> None:
    """The operation's own limit, in the words of the model's."""
    _, arguments = WALKS[operation]
    walk(kms, operation, most, arguments(kms, key))
    with refused("ValidationException") as error:
        walk(kms, operation, most + 1, arguments(kms, key))
    assert error["message"].endswith(f"Member must have value less than or equal to {most}")
