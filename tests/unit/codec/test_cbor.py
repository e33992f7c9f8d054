from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.codec import cbor

KEYS = st.integers(-(1 << 64), (1 << 64) - 1) | st.text() | st.binary()
VALUES = st.recursive(
    st.none() | st.booleans() | KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_encoded_decodes_to_itself(value: object) -> None:
    """Encoding and decoding are inverse, and another implementation agrees with both."""
    data = cbor.encode(value)
    assert cbor.decode(data, max_depth=32) == value
    assert cbor2.loads(data) == value
    assert cbor.decode(cbor2.dumps(value), max_depth=32) == value


@given(st.binary(max_size=64))
def test_any_bytes_decode_or_raise_the_one_error(data: bytes) -> None:
    """Hostile bytes give a value or CborError with an offset inside the input; nothing else ever happens."""
    offset = 0
    try:
        cbor.decode(data)
    except cbor.CborError as error:
        offset = error.offset
    assert 0 <= offset <= len(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("9fff", []),
        ("9f0102ff", [1, 2]),
        ("bf6161f5ff", {"a": True}),
        ("5f41014102ff", b"\x01\x02"),
        ("7f61616162ff", "ab"),
        ("5fff", b""),
        ("1b0000000000000001", 1),
        ("3bffffffffffffffff", -(1 << 64)),
        ("d284", None),
        ("c100", cbor.Tag(1, 0)),
        ("f7", cbor.Simple(23)),
        ("f8ff", cbor.Simple(255)),
        ("f93c00", 1.0),
        ("fa3f800000", 1.0),
        ("fb3ff0000000000000", 1.0),
    ],
)
def test_valid_forms_that_the_encoder_never_writes_are_read(data: str, value: object) -> None:
    """Indefinite lengths, longer integers, tags, simple values and floats decode."""
    if value is None:
        assert cbor.decode(bytes.fromhex(data) + bytes(4)) == cbor.Tag(18, [0, 0, 0, 0])
    else:
        assert cbor.decode(bytes.fromhex(data)) == value


@pytest.mark.parametrize(
    "data",
    [
        "",  # nothing
        "0000",  # bytes after the item
        "18",  # head cut
        "1c", "1d", "1e", "fc", "fd", "fe",  # reserved additional information
        "1f", "3f", "df",  # indefinite where there is no such thing
        "ff",  # bare break
        "4201",  # content cut
        "5bffffffffffffffff",  # length beyond the input
        "9bffffffffffffffff",  # count beyond the input
        "bbffffffffffffffff",
        "9a0fffffff", "ba0fffffff",
        "9f01",  # break missing
        "bf01ff",  # odd number of items
        "bf",
        "82ff01", "a1ff", "8201ff",  # a break ends a definite item early
        "5f6161ff", "7f4161ff", "5f5f4101ffff",  # chunk of another type; nested indefinite chunk
        "61ff", "7f61c361a9ff",  # text that is not UTF-8, also when only the whole is
        "a201010102", "bf01010102ff", "a2616100616101",  # duplicate keys
        "a1f500", "a1f93c0000", "a18000", "a1a000", "a1c10000",  # keys that are no integer and no string
        "f81f", "f800",  # simple values that need one byte
        "f93c", "d2",
        "a3010203",  # definite map with too few pairs
    ],
)  # fmt: skip
def test_malformed_items_are_refused(data: str) -> None:
    """Each lexical fault of attestation.md §6 is a CborError."""
    with pytest.raises(cbor.CborError):
        cbor.decode(bytes.fromhex(data))


def test_huge_counts_fail_before_anything_is_allocated() -> None:
    """Counts are compared with the bytes that are left: a short input cannot claim a long array."""
    with pytest.raises(cbor.CborError, match="4294967295 items where 1 bytes"):
        cbor.decode(bytes.fromhex("9affffffff00"))


@pytest.mark.parametrize("opener", ["81", "9f", "a100", "bf00", "c1"])
def test_nesting_is_limited(opener: str) -> None:
    """Sixteen levels pass, seventeen do not, and a bomb of thousands does not reach Python's own limit."""
    closer = b"\xff" if opener in {"9f", "bf00"} else b""
    nested = [bytes.fromhex(opener) * depth + b"\x00" + closer * depth for depth in (16, 17, 10_000)]
    cbor.decode(nested[0])
    for data in nested[1:]:
        with pytest.raises(cbor.CborError, match="too deep"):
            cbor.decode(data)


def test_a_prefix_ends_where_the_item_ends() -> None:
    """`decode_prefix` says where the next item begins."""
    assert cbor.decode_prefix(b"\x82\x01\x02\x03") == ([1, 2], 3)


def test_uint64_keeps_eight_bytes_and_dicts_keep_their_order() -> None:
    """The two things in which a document differs from preferred and deterministic encoding."""
    assert cbor.encode(cbor.Uint64(5)).hex() == "1b0000000000000005"
    assert cbor.encode({"b": 1, "a": 2}).hex() == "a2616201616102"


@pytest.mark.parametrize("value", [1 << 64, -(1 << 64) - 1, cbor.Uint64(1 << 64), cbor.Uint64(-1)])
def test_integers_beyond_64_bits_are_refused(value: int) -> None:
    """CBOR integers have 64 bits."""
    with pytest.raises(ValueError, match="64 bits"):
        cbor.encode(value)


@pytest.mark.parametrize("value", [1.5, object(), {1, 2}, [object()]])
def test_other_types_have_no_encoding(value: object) -> None:
    """A type that the encoder does not know is a mistake of the caller."""
    with pytest.raises(TypeError, match="no CBOR"):
        cbor.encode(value)


def test_tags_and_simple_values_round_trip() -> None:
    """What the decoder returns for tags and simple values can be encoded again."""
    for value in (cbor.Tag(18, [1]), cbor.Simple(23), (1, 2)):
        decoded = cbor.decode(cbor.encode(value))
        assert decoded == (list(value) if isinstance(value, tuple) else value)
