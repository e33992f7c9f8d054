from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.codec import der


def node(text: str) -> der.Node:
    return der.parse(bytes.fromhex(text))


@pytest.mark.parametrize(
    "data",
    ["", "30", "3001", "300000", "3080", "30800000", "308100", "30817f" + "00" * 127, "30820080" + "00" * 128,
     "1f0100", "3085000000000100", "3082"],
)  # fmt: skip
def test_malformed_items_are_refused(data: str) -> None:
    """Cut heads, content past the parent, trailing bytes, indefinite and needlessly long lengths, long tags."""
    with pytest.raises(der.DerError):
        node(data)


def test_children_may_not_run_past_their_parent() -> None:
    """A child is bounded by its parent, and its offset counts from the outermost item."""
    with pytest.raises(der.DerError, match="past its parent") as caught:
        node("30050201010202").children(der.SEQUENCE, "test")
    assert caught.value.offset == 5
    assert [child.offset for child in node("3006020101020102").children(der.SEQUENCE, "test")] == [2, 5]


@pytest.mark.parametrize("data", ["0200", "0201ff", "02020001", "020200 7f", "0101ff"])
def test_integers_are_minimal_and_not_negative(data: str) -> None:
    """Empty, negative and padded integers, and other types, are refused."""
    with pytest.raises(der.DerError):
        node(data).integer("test")


def test_integers_are_read() -> None:
    """A leading zero belongs to a number whose first bit is set."""
    assert (node("020100").integer("x"), node("02020080").integer("x")) == (0, 128)


@pytest.mark.parametrize("data", ["0300", "030100", "030208ff", "030201ff", "030206c1", "0402ff00"])
def test_bit_strings_have_zero_unused_bits(data: str) -> None:
    """Empty strings, more than seven unused bits, and unused bits that are set are refused."""
    with pytest.raises(der.DerError):
        node(data).bit_string("test")


@pytest.mark.parametrize(("data", "value"), [("010100", False), ("0101ff", True), ("010101", None), ("0100", None)])
def test_booleans_are_00_or_ff(data: str, value: object) -> None:
    """DER knows two booleans."""
    if value is None:
        with pytest.raises(der.DerError):
            node(data).boolean("test")
    else:
        assert node(data).boolean("test") is value


def time(tag: int, text: str) -> datetime:
    return der.parse(bytes((tag, len(text))) + text.encode()).time("test")


def test_times_are_read() -> None:
    """UTCTime covers 1950 to 2049, GeneralizedTime what follows."""
    assert time(der.UTC_TIME, "491231235959Z") == datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert time(der.UTC_TIME, "500101000000Z").year == 1950
    assert time(der.GENERALIZED_TIME, "20500101000000Z").year == 2050


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (der.UTC_TIME, "2601010000Z"),
        (der.UTC_TIME, "260101000000"),
        (der.UTC_TIME, "260101000000+"),
        (der.UTC_TIME, "26010100000aZ"),
        (der.UTC_TIME, "260230000000Z"),
        (der.UTC_TIME, "260431000000Z"),
        (der.UTC_TIME, "250229000000Z"),
        (der.UTC_TIME, "261301000000Z"),
        (der.UTC_TIME, "260101240000Z"),
        (der.UTC_TIME, "260101000060Z"),
        (der.GENERALIZED_TIME, "20260101000000Z"),
        (der.GENERALIZED_TIME, "260101000000Z"),
        (der.OCTET_STRING, "260101000000Z"),
    ],
)
def test_other_times_are_refused(tag: int, text: str) -> None:
    """Wrong type, length or zone, characters that are no digits, and dates that never were."""
    with pytest.raises(der.DerError):
        time(tag, text)


@given(st.binary(max_size=40))
def test_any_bytes_parse_or_raise_the_one_error(data: bytes) -> None:
    """Hostile bytes give a node whose encoding is the input, or DerError."""
    offset = 0
    try:
        assert der.parse(data).raw == data
    except der.DerError as error:
        offset = error.offset
    assert 0 <= offset <= len(data)
