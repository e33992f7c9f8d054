"""Requests generated from the service model: whatever they are, what comes back is the model's (kms.md §26).

For every operation, Hypothesis makes parameters from the operation's own input shape: values in their bounds and just
outside, wrong types, and often names of things that exist. The answer must be one that the model describes: members of
the output shape within their constraints, or an error that the operation may give, in the form of that error. An
internal error is a failure.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.loaders
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.kms.in_process import InProcess, in_process
from tests.unit.kms.test_policy_model import policies

from alcove.kms.audit import MAX_LINE
from alcove.kms.call import Answer
from alcove.kms.model import kms_model
from alcove.kms.operations.table import OPERATIONS as TABLE

pytestmark = pytest.mark.slow

MODEL = botocore.loaders.Loader().load_service_model("kms", "service-2")
SHAPES, OPERATIONS = MODEL["shapes"], MODEL["operations"]
ANYWHERE = {"AccessDeniedException", "SerializationException", "ValidationException", "UnsupportedOperationException"}
"""What every operation may give beside the errors of the model (kms.md §10.2)."""
MORE = {"DescribeKey": {"InvalidGrantTokenException"}}
"""What the model forgets: the operation takes grant tokens."""
SILENT = {"InvalidCiphertextException", "KMSInvalidMacException", "KMSInvalidSignatureException"}  # §10.3
CONSTRAINTS = re.compile(r"(\d+) validation errors? detected: (Value.* at '[^']+' failed to satisfy constraint: .+)")
OTHER = "arn:aws:kms:us-east-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab"
JUNK = [
    "",
    "x",
    "alias/",
    "alias/nothing",
    "arn:aws:kms:eu-north-1:111122223333:key/x",
    OTHER,
    "mrk-00",
    "\x00",
    "é" * 40,
]


@dataclass(repr=False)
class World:
    """What exists when requests are made: every kind of key, with aliases, grants, ciphertexts; and good requests."""

    kms: InProcess
    names: dict[str, list[Any]]
    good: dict[str, dict[str, Any]]

    def __repr__(self) -> str:
        return "a world"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with in_process(tmp_path) as kms:
        yield furnish(kms)


def furnish(kms: InProcess) -> World:
    """Makes what exists; names of it by the request members that they are for."""
    kinds: list[dict[str, Any]] = [
        {},
        {"MultiRegion": True},
        {"Origin": "EXTERNAL"},
        {"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"},
        {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"},
        {"KeySpec": "ECC_NIST_P384", "KeyUsage": "KEY_AGREEMENT"},
        {"KeySpec": "ECC_NIST_EDWARDS25519", "KeyUsage": "SIGN_VERIFY"},
        {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"},
        {"KeySpec": "ML_DSA_44", "KeyUsage": "SIGN_VERIFY"},
        {"KeySpec": "ML_KEM_768", "KeyUsage": "ENCAPSULATE_DECAPSULATE"},
        {"MultiRegion": True},
    ]
    keys = [kms.call("CreateKey", **kind)["KeyMetadata"] for kind in kinds]
    first = keys[0]["KeyId"]
    kms.call("CreateAlias", AliasName="alias/one", TargetKeyId=first)
    kms.call("ReplicateKey", KeyId=keys[-1]["KeyId"], ReplicaRegion="eu-west-1")
    grant = kms.call("CreateGrant", KeyId=first, GranteePrincipal="111122223333", Operations=["Decrypt"])
    sealed = kms.call("Encrypt", KeyId=first, Plaintext="c2VjcmV0")["CiphertextBlob"]
    public = kms.call("GetPublicKey", KeyId=keys[5]["KeyId"])["PublicKey"]
    way = {"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
    token = kms.call("GetParametersForImport", KeyId=keys[2]["KeyId"], **way)["ImportToken"]
    ids = [key["KeyId"] for key in keys] + [key["Arn"] for key in keys[:3]]
    principals = ["111122223333", "arn:aws:iam::111122223333:user/admin", "arn:aws:iam::111122223333:user/nobody"]
    names: dict[str, list[Any]] = {
        "KeyId": [*ids, "alias/one"], "TargetKeyId": ids, "SourceKeyId": ids, "DestinationKeyId": ids,
        "AliasName": ["alias/one", "alias/two", "alias/aws/x", "two"], "GrantId": [grant["GrantId"]],
        "GrantToken": [grant["GrantToken"]], "GrantTokens": [[grant["GrantToken"]], []], "CiphertextBlob": [sealed],
        "PublicKey": [public], "ImportToken": [token], "GranteePrincipal": principals, "RetiringPrincipal": principals,
        "ReplicaRegion": ["us-east-1", "eu-west-1", "ap-south-1"], "PrimaryRegion": ["us-east-1", "eu-west-1"],
        "PolicyName": ["default", "AWS_RAM", "other"], "KeyMaterialId": [keys[0]["CurrentKeyMaterialId"]],
        "ValidTo": [4e9, 1e9, 0],
    }  # fmt: skip
    return World(kms, names, good_requests([key["KeyId"] for key in keys], names))


def good_requests(keys: list[str], names: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """A request for every operation that is served, which works until something has changed."""
    key, several, imported, rsa, signing, agreeing, _, mac, _, kem, family = keys
    (sealed,), (token,), (public,) = names["CiphertextBlob"], names["GrantToken"], names["PublicKey"]
    on_key, context = {"KeyId": key}, {"EncryptionContext": {"app": "demo"}}
    signed = {"KeyId": signing, "Message": "eA==", "SigningAlgorithm": "ECDSA_SHA_256"}
    code = {"KeyId": mac, "Message": "eA==", "MacAlgorithm": "HMAC_SHA_256"}
    secret = {"KeyId": kem, "EncapsulationAlgorithm": "ML_KEM"}
    wrapping = {"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
    wrapped = {"ImportToken": names["ImportToken"][0], "EncryptedKeyMaterial": base64.b64encode(bytes(256)).decode()}
    policy = {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}
    special: dict[str, dict[str, Any]] = {
        "CreateAlias": {"AliasName": "alias/new", "TargetKeyId": key},
        "CreateGrant": {**on_key, "GranteePrincipal": "111122223333", "Operations": ["Encrypt"]},
        "CreateKey": {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"},
        "Decapsulate": {**secret, "SharedSecretCiphertextBlob": base64.b64encode(bytes(1088)).decode()},
        "Decrypt": {"CiphertextBlob": sealed},
        "DeleteAlias": {"AliasName": "alias/one"},
        "DeleteImportedKeyMaterial": {"KeyId": imported},
        "DeriveSharedSecret": {"KeyId": agreeing, "KeyAgreementAlgorithm": "ECDH", "PublicKey": public},
        "Encapsulate": secret,
        "Encrypt": {**on_key, **context, "Plaintext": "eA=="},
        "GenerateDataKey": {**on_key, **context, "KeySpec": "AES_256"},
        "GenerateDataKeyPair": {**on_key, "KeyPairSpec": "ECC_NIST_P256"},
        "GenerateDataKeyPairWithoutPlaintext": {**on_key, "KeyPairSpec": "ML_KEM_768"},
        "GenerateDataKeyWithoutPlaintext": {**on_key, "NumberOfBytes": 24},
        "GenerateMac": code,
        "GenerateRandom": {"NumberOfBytes": 24},
        "GetParametersForImport": {"KeyId": imported, **wrapping},
        "GetPublicKey": {"KeyId": rsa},
        "ImportKeyMaterial": {"KeyId": imported, "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE", **wrapped},
        "ListAliases": {},
        "ListKeys": {"Limit": 3},
        "ListRetirableGrants": {"RetiringPrincipal": "arn:aws:iam::111122223333:user/admin"},
        "PutKeyPolicy": {**on_key, "Policy": json.dumps({"Version": "2012-10-17", "Statement": policy})},
        "ReEncrypt": {"CiphertextBlob": sealed, "DestinationKeyId": key},
        "ReplicateKey": {"KeyId": several, "ReplicaRegion": "eu-west-1"},
        "RetireGrant": {"GrantToken": token},
        "RevokeGrant": {**on_key, "GrantId": names["GrantId"][0]},
        "ScheduleKeyDeletion": {"KeyId": several, "PendingWindowInDays": 7},
        "Sign": signed,
        "TagResource": {**on_key, "Tags": [{"TagKey": "a", "TagValue": "b"}]},
        "UntagResource": {**on_key, "TagKeys": ["a"]},
        "UpdateAlias": {"AliasName": "alias/one", "TargetKeyId": key},
        "UpdateKeyDescription": {**on_key, "Description": "d"},
        "UpdatePrimaryRegion": {"KeyId": family, "PrimaryRegion": "eu-west-1"},
        "Verify": {**signed, "Signature": "eA=="},
        "VerifyMac": {**code, "Mac": "eA=="},
    }
    return {operation: special.get(operation, on_key) for operation in TABLE}


def integers(shape: Any) -> st.SearchStrategy[Any]:
    """In the bounds, at them, and one further."""
    low, high = shape.get("min", -(2**31)), shape.get("max", 2**31 - 1)
    return st.integers(low, high) | st.sampled_from([low - 1, low, high, high + 1, 0])


def texts(shape: Any) -> st.SearchStrategy[Any]:
    """Of an enumeration or a pattern, or none of it; rarely far too long."""
    if "enum" in shape:
        return st.sampled_from([*shape["enum"], *shape["enum"], "NOT_ONE"])
    high = min(shape.get("max", 64), 64)
    wild = st.text(max_size=high) | st.sampled_from(JUNK) | st.just("x" * (shape.get("max", 100) + 1))
    return wild | st.from_regex(shape["pattern"], fullmatch=True) if "pattern" in shape else wild


def blobs(shape: Any) -> st.SearchStrategy[Any]:
    """Bytes in base64, or nearly."""
    sizes = st.binary(max_size=96) | st.just(bytes(shape.get("max", 100) + 1)) | st.just(os.urandom(64))
    return sizes.map(lambda data: base64.b64encode(data).decode()) | st.sampled_from(["", "=", "YQ", "é"])


def values(name: str) -> st.SearchStrategy[Any]:
    """Values of a shape, most of them such as it may have."""
    shape = SHAPES[name]
    match shape["type"]:
        case "structure":
            return members(shape)
        case "list":
            return st.lists(values(shape["member"]["shape"]), max_size=4)
        case "map":
            return st.dictionaries(st.text(max_size=8), values(shape["value"]["shape"]), max_size=3)
        case "integer" | "long":
            return integers(shape)
        case "timestamp":
            return st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**40), 2**40)
        case "boolean":
            return st.booleans()
        case "blob":
            return blobs(shape)
        case _:
            return texts(shape)


@st.composite
def members(draw: st.DrawFn, shape: Any, known: dict[str, list[Any]] | None = None) -> dict[str, Any]:
    """Members of a structure: the required ones nearly always, of what exists where something does."""
    found: dict[str, Any] = {}
    for member, target in shape["members"].items():
        likely = 19 if member in shape.get("required", ()) else 5
        if draw(st.integers(0, 19)) >= likely:
            continue
        choice = values(target["shape"])
        if member == "Policy":
            choice = choice | policies(principal=True).map(json.dumps)
        if known and member in known:
            existing = st.sampled_from(known[member])
            choice = st.one_of(existing, existing, existing, choice)
        if draw(st.integers(0, 39)) == 0:
            choice = st.sampled_from([None, 1, -1.5, True, "x", [], [1], {}, {"x": 1}])
        found[member] = draw(choice)
    return found


@st.composite
def changed(draw: st.DrawFn, shape: Any, start: dict[str, Any]) -> dict[str, Any]:
    """A good request with a member or two changed, left out or added, or none."""
    found = dict(start)
    for member in draw(st.lists(st.sampled_from(sorted(shape["members"])), max_size=2)) if shape["members"] else ():
        if draw(st.integers(0, 3)) == 0:
            found.pop(member, None)
        else:
            found[member] = draw(values(shape["members"][member]["shape"]))
    return found


def check_answer(operation: str, answer: Answer) -> None:
    """An answer is one that the model describes."""
    assert answer.status in {200, 400}, answer.body
    if answer.status == 200:
        check_result(operation, answer.body)
        return
    error = json.loads(answer.body)
    kind = error["__type"]
    allowed = {one["shape"] for one in OPERATIONS[operation].get("errors", [])} | ANYWHERE | MORE.get(operation, set())
    assert kind in allowed, error
    text = error.get("Message" if kind == "AccessDeniedException" else "message")
    assert set(error) <= {"__type", "Message", "message"}
    assert text is not None or kind in {*SILENT, "UnsupportedOperationException"}
    if kind == "ValidationException" and text and "validation error" in text:
        match = CONSTRAINTS.fullmatch(text.replace("\n", " "))
        assert match, text
        assert len(text) < 40_000


def check_result(operation: str, body: bytes) -> None:
    """Every member is of the output shape, of its type and within its constraints."""
    output = OPERATIONS[operation].get("output")
    if output is None:
        assert body == b""
        return
    problems: list[str] = []
    result = json.loads(body)
    assert set(result) <= set(SHAPES[output["shape"]]["members"])
    assert None not in result.values()
    kms_model()._reader(output["shape"])(result, "", problems)
    newer = [p for p in problems if "customerMasterKeySpec" not in p]  # its enumeration stops earlier (§2.4)
    assert not newer


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_an_operation_answers_as_the_model_says(world: World, operation: str, data: st.DataObject) -> None:
    """Whatever its parameters are."""
    shape = SHAPES[OPERATIONS[operation]["input"]["shape"]]
    generated = members(shape, world.names)
    good = world.good.get(operation)
    parameters = data.draw(generated if good is None else generated | changed(shape, good) | changed(shape, good))
    records = len(world.kms.records)
    answer = world.kms.send(operation, json.dumps(parameters).encode())
    check_answer(operation, answer)
    (record,) = (r for r in world.kms.records[records:] if r["eventType"] == "AwsApiCall")
    assert len(json.dumps(record)) < 1 << 19  # the log's lines are bounded
    json.dumps(record, allow_nan=False)


def test_the_good_requests_are_good(tmp_path: Path) -> None:
    """Each works in a world of its own; so what is generated from them comes far."""
    refused = {}
    with in_process(tmp_path) as kms:
        world = furnish(kms)
        later = {"DisableKey", "DeleteAlias", "ScheduleKeyDeletion"}
        for operation in sorted(world.good, key=lambda name: (name in later, name)):
            answer = kms.send(operation, json.dumps(world.good[operation]).encode())
            if answer.status != 200:
                refused[operation] = json.loads(answer.body)["__type"]
    assert refused == {
        "CancelKeyDeletion": "KMSInvalidStateException",  # it is enabled
        "ImportKeyMaterial": "InvalidCiphertextException",  # 256 zeros
        "RevokeGrant": "NotFoundException",  # it was retired
        "Verify": "KMSInvalidSignatureException",
        "VerifyMac": "KMSInvalidMacException",
    }


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    operation=st.sampled_from(sorted(OPERATIONS)), body=st.binary(max_size=200) | st.text(max_size=200).map(str.encode)
)
def test_any_body_is_answered(world: World, operation: str, body: bytes) -> None:
    """Bytes that are no JSON, or other JSON."""
    check_answer(operation, world.kms.send(operation, body))


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    """Every operation that takes DryRun says that it would have worked, and leaves the store as it was."""
    with in_process(tmp_path) as kms:
        good = furnish(kms).good
        dry = [name for name, one in OPERATIONS.items() if "DryRun" in SHAPES[one["input"]["shape"]]["members"]]
        assert len(dry) >= 17
        with contextlib.closing(sqlite3.connect(tmp_path / "kms.sqlite")) as database:
            before = list(database.iterdump())
            for operation in dry:
                answer = kms.send(operation, json.dumps({**good[operation], "DryRun": True}).encode())
                assert json.loads(answer.body)["__type"] == "DryRunOperationException", operation
            assert list(database.iterdump()) == before


def test_large_requests_leave_small_lines(world: World) -> None:
    """A megabyte of context, tags or violations: the answer and the record stay below the bounds of the log."""
    key = world.names["KeyId"][0]
    context = {f"key {i} é" * 20: "\u20ac" * 40 for i in range(2500)}
    requests = [
        ("Encrypt", {"KeyId": key, "Plaintext": "eA==", "EncryptionContext": context}),
        ("Decrypt", {"KeyId": key, "CiphertextBlob": "eA==", "EncryptionContext": {"\u20ac" * 300_000: "x"}}),
        ("TagResource", {"KeyId": key, "Tags": [{"TagKey": f"k{i}", "TagValue": "é" * 200} for i in range(2000)]}),
        ("TagResource", {"KeyId": key, "Tags": [{} for _ in range(300_000)]}),
        ("CreateGrant", {"KeyId": key, "Operations": ["é" * 100] * 4000, "GranteePrincipal": "x"}),
    ]
    for operation, members_ in requests:
        answer = world.kms.send(operation, json.dumps(members_, ensure_ascii=False).encode())
        assert len(answer.body) < 1 << 17
        line = json.dumps(world.kms.records[-1])
        assert len(line) < MAX_LINE // 2
        if answer.status == 200:
            assert world.kms.records[-1]["requestParameters"]["keyId"] == key
            assert set(world.kms.records[-1]["requestParameters"]["omitted"]) == {"characters", "sha256"}
