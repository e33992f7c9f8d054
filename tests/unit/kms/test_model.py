"""The service model as a gate: types, constraints and AWS's words."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.kms.errors import KmsError
from alcove.kms.model import ALSO_ATTESTED, kms_model
from alcove.kms.operations.table import OPERATIONS

BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")  # RFC 4648 §4
KEY_ID = "11111111-2222-3333-4444-555555555555"


def refusal(operation: str, body: Any) -> KmsError:
    with pytest.raises(KmsError) as caught:
        kms_model().parse(operation, body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_request_comes_out_with_bytes() -> None:
    """Blobs are decoded, nulls and unknown members are left out."""
    body = {"KeyId": KEY_ID, "Plaintext": b64(b"hi"), "EncryptionContext": {"a": "b"}, "Tags": 1, "DryRun": None}
    parsed = kms_model().parse("Encrypt", json.dumps(body).encode())
    assert parsed == {"KeyId": KEY_ID, "Plaintext": b"hi", "EncryptionContext": {"a": "b"}}


def check_blob(text: str) -> None:
    body = json.dumps({"CiphertextBlob": text}).encode()
    if BASE64.fullmatch(text):
        assert kms_model().parse("Decrypt", body)["CiphertextBlob"] == base64.b64decode(text)
    else:
        assert refusal("Decrypt", body).kind == "SerializationException"


@given(st.text("AQz/+=", min_size=1, max_size=12) | st.text("AQz/+= \n-_é\0", min_size=1, max_size=12))
def test_a_blob_is_base64_of_whole_groups_and_nothing_else(text: str) -> None:
    """What RFC 4648 §4 has is read, and nothing around, in or after it; a wrong padding is refused."""
    check_blob(text)


@given(st.binary(min_size=3, max_size=600), st.data())
def test_a_wrong_character_anywhere_in_a_long_blob_is_seen(blob: bytes, data: st.DataObject) -> None:
    """The reader takes many characters at a time, and each of them counts."""
    text = b64(blob)
    check_blob(text)
    place = data.draw(st.integers(0, len(text) - 1))
    check_blob(text[:place] + data.draw(st.sampled_from("=-_ \n\0é.")) + text[place + 1 :])


@pytest.mark.parametrize(
    ("operation", "body", "message"),
    [
        (
            "DescribeKey",
            {},
            "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null",
        ),
        (
            "GenerateRandom",
            {"NumberOfBytes": 0},
            (
                "1 validation error detected: Value '0' at 'numberOfBytes' failed to satisfy constraint: "
                "Member must have value greater than or equal to 1"
            ),
        ),
        (
            "GenerateRandom",
            {"NumberOfBytes": 1025},
            (
                "1 validation error detected: Value '1025' at 'numberOfBytes' failed to satisfy constraint: "
                "Member must have value less than or equal to 1024"
            ),
        ),
        (
            "Encrypt",
            {"KeyId": KEY_ID, "Plaintext": ""},
            (
                "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: "
                "Member must have length greater than or equal to 1"
            ),
        ),
        (
            "GetKeyPolicy",
            {"KeyId": KEY_ID, "PolicyName": "a b"},
            (
                "1 validation error detected: Value 'a b' at 'policyName' failed to satisfy constraint: "
                "Member must satisfy regular expression pattern: [\\w]+"
            ),
        ),
        (
            "GenerateDataKey",
            {"KeyId": KEY_ID, "Recipient": {"KeyEncryptionAlgorithm": "RSA"}},
            (
                "1 validation error detected: Value 'RSA' at 'recipient.keyEncryptionAlgorithm' failed to satisfy "
                "constraint: Member must satisfy enum value set: [RSAES_OAEP_SHA_256]"
            ),
        ),
        (
            "CreateKey",
            {"Tags": [{"TagKey": "a" * 129, "TagValue": ""}]},
            (
                f"1 validation error detected: Value '{'a' * 129}' at 'tags.1.member.tagKey' failed to satisfy "
                "constraint: Member must have length less than or equal to 128"
            ),
        ),
    ],
)
def test_a_constraint_is_refused_in_awss_words(operation: str, body: dict[str, Any], message: str) -> None:
    """The recorded form of kms.md §10.3."""
    error = refusal(operation, body)
    assert (error.kind, error.text) == ("ValidationException", message)


def test_all_violations_come_at_once() -> None:
    """Several violations are one message with their number."""
    assert str(refusal("Encrypt", {}).text).startswith("2 validation errors detected: ")


def test_a_large_document_is_refused_by_its_length() -> None:
    """262,144 bytes of attestation document, and not one more (kms.md §9)."""
    recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": b64(bytes(262_145))}
    error = refusal("GenerateRandom", {"NumberOfBytes": 1, "Recipient": recipient})
    assert "less than or equal to 262144" in str(error.text)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"1",
        b"\xff",
        b"[" * 100_000,
        b'{"KeyId":1}',
        b'{"KeyId":"a","KeyId":"b"}',
        b'{"KeyId":"\\ud800"}',
        b'{"KeyId":"a","Plaintext":"?"}',
        b'{"KeyId":"a","Plaintext":"QQ"}',
        b'{"KeyId":"a","Plaintext":"QQ==","EncryptionContext":{"a":1}}',
        b'{"KeyId":"a","Plaintext":"QQ==","DryRun":"true"}',
        b'{"KeyId":NaN}',
    ],
)
def test_what_is_not_the_services_json_is_refused(body: bytes) -> None:
    """Wrong JSON and wrong JSON types are a SerializationException."""
    assert refusal("Encrypt", body).kind == "SerializationException"


@pytest.mark.parametrize("text", ["1e400", "-1e400", "1" + "0" * 30, "1" + "0" * 400, "253402300800"])
def test_a_time_is_one_that_there_is(text: str) -> None:
    """What no calendar has, and no record could hold, is refused by the type."""
    body = '{"KeyId":"a","ImportToken":"QQ==","EncryptedKeyMaterial":"QQ==","ValidTo":%s}'
    assert refusal("ImportKeyMaterial", (body % text).encode()).kind == "SerializationException"
    kms_model().parse("ImportKeyMaterial", (body % "253402300799").encode())


def test_an_answer_leaves_out_what_is_not_there() -> None:
    """Absent members are absent, never null (kms.md §0)."""
    rendered = kms_model().render("Decrypt", {"KeyId": "a", "Plaintext": None, "CiphertextForRecipient": b"x"})
    assert rendered == b'{"KeyId":"a","CiphertextForRecipient":"eA=="}'


def test_every_operation_of_the_table_is_in_the_model() -> None:
    """The table cannot name an operation that clients do not know."""
    assert set(OPERATIONS) <= kms_model().operations


@pytest.mark.parametrize("operation", ALSO_ATTESTED)
def test_some_operations_take_a_recipient_that_aws_gives_to_others(operation: str) -> None:
    """Where the enclave is proven by an attestation document although nothing is sealed for it; Verify is not one."""
    assert "Recipient" in kms_model().members(operation)
    assert "Recipient" not in kms_model().members("Verify")
