from __future__ import annotations

from pathlib import Path

import pytest

from alcove.attestation.document import AttestationDocument, open_document, parse_document, parse_payload
from alcove.codec import cbor, cose
from alcove.errors import AttestationError

DOCUMENT = AttestationDocument("i-1-enc2", 1000, {1: bytes(48), 0: b"\1" * 48}, b"leaf", (b"root",), nonce=b"")
FIELDS = cbor.decode(DOCUMENT.encode_payload())


def changed(**changes: object) -> bytes:
    assert isinstance(FIELDS, dict)
    fields = {**FIELDS, **changes}
    return cbor.encode({name: value for name, value in fields.items() if value is not ...})


def test_the_payload_has_the_platforms_shape() -> None:
    """Nine keys in order, an eight-byte timestamp, registers ascending, null for what is absent (attestation.md §2)."""
    assert DOCUMENT.encode_payload() == (
        bytes.fromhex("a9") + b"\x69module_id\x68i-1-enc2" + b"\x66digest\x66SHA384"
        + b"\x69timestamp\x1b" + (1000).to_bytes(8)
        + b"\x64pcrs\xa2\x00\x58\x30" + b"\1" * 48 + b"\x01\x58\x30" + bytes(48)
        + b"\x6bcertificate\x44leaf" + b"\x68cabundle\x81\x44root"
        + b"\x6apublic_key\xf6" + b"\x69user_data\xf6" + b"\x65nonce\x40"
    )  # fmt: skip
    assert parse_payload(DOCUMENT.encode_payload()) == DOCUMENT


@pytest.mark.parametrize(
    "name",
    ["aws-2022-10-12-debug", "aws-2022-10-13-nonce", "aws-2024-08-07", "aws-2025-04-29-pcr16"],
)
def test_real_documents_are_encoded_to_the_same_bytes(aws: Path, name: str) -> None:
    """Reading and writing a genuine document changes no byte of it."""
    data = (aws / f"{name}.cbor").read_bytes()
    sign1, document = open_document(data)
    assert document.encode_payload() == sign1.payload
    assert cose.encode_sign1(sign1) == data


@pytest.mark.parametrize("field", ["public_key", "user_data", "nonce"])
def test_an_optional_field_may_be_null_or_absent(field: str) -> None:
    """Both mean that there is none."""
    for value in (None, ...):
        assert getattr(parse_payload(changed(**{field: value})), field) is None


def test_user_data_and_nonce_may_be_empty_and_public_key_may_not() -> None:
    """The platform emits empty user data; an empty key is none (attestation.md §6)."""
    document = parse_payload(changed(user_data=b"", nonce=b""))
    assert (document.user_data, document.nonce) == (b"", b"")
    with pytest.raises(AttestationError, match="public_key"):
        parse_payload(changed(public_key=b""))


def test_unknown_keys_are_skipped_and_order_does_not_matter() -> None:
    """They are signed and never interpreted; indefinite lengths are valid CBOR."""
    assert isinstance(FIELDS, dict)
    items = b"".join(cbor.encode(name) + cbor.encode(FIELDS[name]) for name in reversed(FIELDS))
    assert parse_payload(b"\xbf" + items + b"\x65extra\x81\xf5" + b"\xff") == DOCUMENT


@pytest.mark.parametrize("field", ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"])
@pytest.mark.parametrize("value", [..., None, True, 1.5, -1, 0, "", b"", [], {}, [None], {"a": 1}])
def test_a_required_field_that_is_missing_or_wrong_is_refused(field: str, value: object) -> None:
    """Each required field has one type, and none of these values."""
    payload = (
        changed(**{field: value}) if value != 1.5 else changed(**{field: "@@"}).replace(b"\x62@@", b"\xf9\x3e\x00")
    )
    with pytest.raises(AttestationError) as caught:
        parse_payload(payload)
    assert caught.value.step == 5
    assert field in caught.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("module_id", b"i-1"),
        ("digest", "SHA256"),
        ("digest", "sha384"),
        ("timestamp", (1 << 64) - 1),
        ("timestamp", b"\1" * 8),
        ("pcrs", {32: bytes(48)}),
        ("pcrs", {-1: bytes(48)}),
        ("pcrs", {"0": bytes(48)}),
        ("pcrs", {0: bytes(47)}),
        ("pcrs", {0: bytes(20)}),
        ("pcrs", {0: "0" * 48}),
        ("pcrs", {0: None}),
        ("pcrs", [bytes(48)]),
        ("pcrs", dict.fromkeys(range(33), bytes(48))),
        ("certificate", bytes(1025)),
        ("certificate", "leaf"),
        ("cabundle", [b""]),
        ("cabundle", [bytes(1025)]),
        ("cabundle", ["root"]),
        ("cabundle", [b"x"] * 33),
        ("cabundle", b"root"),
        ("public_key", bytes(1025)),
        ("public_key", "key"),
        ("user_data", bytes(1025)),
        ("user_data", "data"),
        ("user_data", 0),
        ("nonce", bytes(1025)),
        ("nonce", False),
        ("nonce", []),
    ],
)
def test_a_field_beyond_its_limits_is_refused(field: str, value: object) -> None:
    """Types and sizes of attestation.md §2 and §5.1."""
    with pytest.raises(AttestationError) as caught:
        parse_payload(changed(**{field: value}))
    assert caught.value.step == 5


@pytest.mark.parametrize("pcrs", [{31: bytes(48)}, {0: bytes(32), 16: bytes(64)}, {7: bytes(48), 3: bytes(48)}])
def test_sparse_registers_are_indexed_by_key(pcrs: dict[int, bytes]) -> None:
    """Registers need not be contiguous, ordered or of one size."""
    assert parse_payload(changed(pcrs=pcrs)).pcrs == pcrs


@pytest.mark.parametrize(
    "payload", [b"\x80", b"\xa1\x00\x00", b"\xa1\x41a\x00", b"\x00", b"\xff", b"\xa0\x00", b"\xbf"]
)
def test_a_payload_that_is_not_one_map_with_text_keys_is_refused(payload: bytes) -> None:
    """Step 4."""
    with pytest.raises(AttestationError) as caught:
        parse_payload(payload)
    assert caught.value.step == 4


@pytest.mark.parametrize("field", list(DOCUMENT.__slots__))
def test_a_field_that_occurs_twice_is_refused(field: str) -> None:
    """Two values for one key are two documents."""
    assert isinstance(FIELDS, dict)
    name = {"timestamp_ms": "timestamp"}.get(field, field)
    payload = b"\xaa" + DOCUMENT.encode_payload()[1:] + cbor.encode(name) + cbor.encode(FIELDS[name])
    with pytest.raises(AttestationError, match="twice") as caught:
        parse_payload(payload)
    assert caught.value.step == 4


def test_the_input_is_bounded_before_it_is_read() -> None:
    """Step 1, at both ends."""
    for data in (b"", bytes(20_000)):
        with pytest.raises(AttestationError) as caught:
            parse_document(data)
        assert caught.value.step == 1
