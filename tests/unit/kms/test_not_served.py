"""What the model has and this service does not: refused as AWS refuses it, whoever asks; and models that are newer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import botocore.loaders
import pytest
from tests.unit.kms.in_process import PEER, InProcess, in_process

from alcove.kms.model import Model, kms_model
from alcove.kms.operations.table import OPERATIONS
from alcove.kms.service import Service

UNS, VAL, INV = "UnsupportedOperationException", "ValidationException", "NotFoundException"
DESCRIPTION = botocore.loaders.Loader().load_service_model("kms", "service-2")
CUSTOM_STORES = {f"{verb}CustomKeyStore" for verb in ("Connect", "Create", "Delete", "Disconnect", "Update")} | {
    "DescribeCustomKeyStores"
}
SERVICE = {"GranteeServicePrincipal": "a.amazonaws.com", "RetiringServicePrincipal": "b.amazonaws.com"}
STORE = {"CustomKeyStoreId": "cks-1234567890abcdef0"}


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with in_process(tmp_path_factory.mktemp("kms")) as service:
        yield service


@pytest.fixture(scope="module")
def key(kms: InProcess) -> str:
    return str(kms.call("CreateKey")["KeyMetadata"]["KeyId"])


def kind(kms: InProcess, operation: str, members: dict[str, Any]) -> str:
    """The class of the error; the status is AWS's."""
    answer = kms.send(operation, json.dumps(members).encode())
    assert answer.status == 400, answer.body
    return str(json.loads(answer.body)["__type"])


def test_only_custom_key_stores_are_missing(kms: InProcess) -> None:
    """Every other operation of the model is in the table; these are refused before their parameters are read."""
    assert kms_model().operations - set(OPERATIONS) == CUSTOM_STORES
    for operation in CUSTOM_STORES:
        assert kind(kms, operation, {}) == UNS


@pytest.mark.parametrize(
    ("operation", "members", "expected"),
    [
        ("CreateKey", {"Origin": "AWS_CLOUDHSM"}, UNS),
        ("CreateKey", {"Origin": "AWS_CLOUDHSM", **STORE}, UNS),
        ("CreateKey", {"Origin": "EXTERNAL_KEY_STORE", "XksKeyId": "x"}, UNS),
        ("CreateKey", STORE, UNS),
        ("CreateKey", {"KeySpec": "SM2", "KeyUsage": "SIGN_VERIFY"}, UNS),
        ("GenerateRandom", {"NumberOfBytes": 1, **STORE}, UNS),
        ("GenerateDataKeyPair", {"KeyId": None, "KeyPairSpec": "SM2"}, UNS),
        ("PutKeyPolicy", {"KeyId": None, "PolicyName": "AWS_RAM", "Policy": "{}"}, VAL),
        ("GetKeyPolicy", {"KeyId": None, "PolicyName": "another"}, INV),
        ("CreateGrant", {"KeyId": None, "Operations": ["Encrypt"], **SERVICE}, UNS),
    ],
)
def test_what_is_not_served(kms: InProcess, key: str, operation: str, members: dict[str, Any], expected: str) -> None:
    """Stores of keys elsewhere, SM2, policies and grants that AWS's own services manage."""
    asked = {name: key if value is None else value for name, value in members.items()}
    if not set(asked) <= kms_model().members(operation):
        pytest.skip("this botocore has no such member")
    before = len(kms.call("ListKeys")["Keys"])
    assert kind(kms, operation, asked) == expected
    assert len(kms.call("ListKeys")["Keys"]) == before


def newer() -> dict[str, Any]:
    """A model as a later botocore might have it: one operation, one member and one kind of key more, one limit less."""
    found: dict[str, Any] = copy.deepcopy(DESCRIPTION)
    shapes = found["shapes"]
    shapes["EncryptRequest"]["members"]["Color"] = {"shape": "ColorType"}
    shapes["ColorType"] = {"type": "string", "enum": ["RED", "BLUE"]}
    shapes["KeySpec"]["enum"].append("ROT_13")
    shapes["NumberOfBytesType"]["max"] = 2048
    found["operations"]["PolishKey"] = {"name": "PolishKey", "input": {"shape": "DescribeKeyRequest"}}
    return found


def test_a_newer_model_brings_newer_shapes(kms: InProcess, key: str) -> None:
    """Members, values and limits are those of the model at once; what it asks for that is not there is refused."""
    tools = kms.tools
    later = InProcess(
        Service(tools, Model(newer()), (), kms.records.append, lambda: datetime.now(UTC)), kms.store, kms.admin, tools,
        kms.clock, kms.records,
    )  # fmt: skip
    assert later.call("Encrypt", KeyId=key, Plaintext="eA==", Color="RED")["KeyId"].endswith(key)
    answer = later.send("Encrypt", json.dumps({"KeyId": key, "Plaintext": "eA==", "Color": "PINK"}).encode())
    assert "Value 'PINK' at 'color' failed to satisfy constraint" in json.loads(answer.body)["message"]
    assert kms.call("Encrypt", KeyId=key, Plaintext="eA==", Color="PINK")["KeyId"].endswith(key)  # unknown: not read
    assert kind(later, "CreateKey", {"KeySpec": "ROT_13", "KeyUsage": "ENCRYPT_DECRYPT"}) == UNS
    assert kind(kms, "CreateKey", {"KeySpec": "ROT_13", "KeyUsage": "ENCRYPT_DECRYPT"}) == VAL
    assert len(later.call("GenerateRandom", NumberOfBytes=2048)["Plaintext"]) == 2732
    assert kind(kms, "GenerateRandom", {"NumberOfBytes": 2048}) == VAL
    assert kind(later, "PolishKey", {"KeyId": key}) == UNS
    request = kms.signed("PolishKey", b"{}")
    assert json.loads(kms.service.handle(request, PEER).body)["__type"] == "UnknownOperationException"
