"""Condition operators: the tables of the language, row by row."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alcove.kms.errors import KmsError
from alcove.kms.policy.conditions import OPERATORS, parse_condition
from alcove.kms.policy.text import Value, _long_matches, arn_matches, expand, matches, variables_of

PCR = "kms:RecipientAttestation:PCR0"
GOOD, BAD = "aa" * 48, "bb" * 48
# kms.md §6.3: no document and a document without that PCR are the same missing key.
TRUTH = [
    ("StringEquals", GOOD, False, True, False),
    ("StringEqualsIgnoreCase", GOOD, False, True, False),
    ("StringLike", GOOD, False, True, False),
    ("StringNotEquals", GOOD, True, False, True),
    ("StringNotEqualsIgnoreCase", GOOD, True, False, True),
    ("StringNotLike", GOOD, True, False, True),
    ("StringEqualsIfExists", GOOD, True, True, False),
    ("StringEqualsIgnoreCaseIfExists", GOOD, True, True, False),
    ("StringLikeIfExists", GOOD, True, True, False),
    ("StringNotEqualsIfExists", GOOD, True, False, True),
    ("Null", "true", True, False, False),
    ("Null", "false", False, True, True),
    ("ForAllValues:StringEquals", GOOD, True, True, False),
    ("ForAnyValue:StringEquals", GOOD, False, True, False),
]


def holds(operator: str, values: str | tuple[str, ...], actual: Value | None, *, variables: bool = True) -> bool:
    given = (values,) if isinstance(values, str) else values
    context = {} if actual is None else {"k": actual}
    context |= {"aws:username": "al*ce", "many": ("a", "b")}
    return parse_condition(operator, "K", given).holds(context, variables=variables)


@pytest.mark.parametrize(("operator", "value", "missing", "equal", "different"), TRUTH)
def test_the_truth_table_of_attestation(
    operator: str, value: str, *, missing: bool, equal: bool, different: bool
) -> None:
    """Each operator on a PCR that is missing, equal and different (kms.md §6.3)."""
    condition = parse_condition(operator, PCR, (value,))
    assert condition.holds({}, variables=True) is missing
    assert condition.holds({PCR.lower(): GOOD}, variables=True) is equal
    assert condition.holds({PCR.lower(): BAD}, variables=True) is different
    assert condition.operator == operator


@pytest.mark.parametrize(("operator", "value", "different"), [(row[0], row[1], row[4]) for row in TRUTH])
def test_zeros_must_be_asked_for(operator: str, value: str, *, different: bool) -> None:
    """An enclave in debug mode has them: in an Allow no operator lets them in; a Deny takes them as they are."""
    zero = {PCR.lower(): "0" * 96}
    assert parse_condition(operator, PCR, (value,)).holds(zero, variables=True) is False
    assert parse_condition(operator, PCR, (value,), allow=False).holds(zero, variables=True) is different


def test_zeros_that_are_asked_for() -> None:
    """Among the values, also as a pattern; other registers and other keys have nothing to do with debug mode."""
    zero = {PCR.lower(): "0" * 96, "kms:recipientattestation:pcr4": "0" * 96, "kms:requestalias": "0"}
    for operator, key, values, expected in (
        ("StringEquals", PCR, (GOOD, "0" * 96), True),
        ("StringLike", PCR, ("0*",), True),
        ("StringLike", PCR, ("*",), False),
        ("StringNotEquals", "kms:RecipientAttestation:PCR4", (GOOD,), True),
        ("StringLike", "kms:RequestAlias", ("*",), True),
    ):
        assert parse_condition(operator, key, values).holds(zero, variables=True) is expected


@pytest.mark.parametrize(
    ("operator", "value", "actual", "expected"),
    [
        ("StringEquals", "a*", "ab", False),
        ("StringEquals", "A", "a", False),
        ("StringEqualsIgnoreCase", "AB", "ab", True),
        ("StringLike", "a*c?", "abbcd", True),
        ("StringLike", "a*c?", "abbc", False),
        ("StringLike", "A*", "ab", False),
        ("NumericEquals", "7.0", "7", True),
        ("NumericNotEquals", "7", "8", True),
        ("NumericLessThan", "7", "6.5", True),
        ("NumericLessThanEquals", "7", "7", True),
        ("NumericGreaterThan", "7", "7", False),
        ("NumericGreaterThanEquals", "7", "7", True),
        ("NumericEquals", "7", "seven", False),
        ("DateLessThan", "2024-01-01T00:00:00Z", "2023-12-31T23:59:59Z", True),
        ("DateGreaterThan", "1704067200", "2024-01-01T00:00:01Z", True),
        ("DateEquals", "2024-01-01", "1704067200", True),
        ("DateNotEquals", "2024-01-01", "1704067200", False),
        ("Bool", "TRUE", "true", True),
        ("Bool", "false", "true", False),
        ("BinaryEquals", "QUI=", "QUI=", True),
        ("BinaryEquals", "QUI=", "QUM=", False),
        ("IpAddress", "10.0.0.0/8", "10.1.2.3", True),
        ("IpAddress", "10.0.0.1", "10.0.0.2", False),
        ("IpAddress", "::/0", "10.0.0.1", False),
        ("IpAddress", "2001:db8::/32", "2001:db8::1", True),
        ("NotIpAddress", "10.0.0.0/8", "11.0.0.1", True),
        ("ArnEquals", "arn:aws:iam::*:user/*", "arn:aws:iam::111122223333:user/a:b", True),
        ("ArnLike", "arn:aws:iam::1:user/a", "arn:aws:iam::2:user/a", False),
        ("ArnNotEquals", "arn:aws:iam::1:user/a", "arn:aws:iam::2:user/a", True),
        ("ArnNotLike", "arn:*", "arn:aws:iam::2:user/a", True),
        ("stringequals", "x", "x", True),
    ],
)
def test_a_comparison(operator: str, value: str, actual: str, *, expected: bool) -> None:
    """One row of kms.md §7.1."""
    assert holds(operator, value, actual) is expected


@pytest.mark.parametrize("name", [base.name for base in OPERATORS.values() if base.name != "Null"])
def test_a_missing_key_is_false_true_when_negated_and_true_if_exists(name: str) -> None:
    """The rule of kms.md §7.2 for every operator."""
    base = OPERATORS[name.lower()]
    value = "1" if name.startswith(("Numeric", "Date")) else "true" if name == "Bool" else "10.0.0.1"
    value = "QUI=" if name == "BinaryEquals" else value
    assert holds(name, value, None) is base.negated
    assert holds(f"{name}IfExists", value, None) is True
    assert holds(f"ForAllValues:{name}", value, None) is True
    assert holds(f"ForAnyValue:{name}", value, None) is False


def test_several_values_are_or_and_and_when_negated() -> None:
    """One match is enough for a positive operator; a negated one must match none."""
    assert holds("StringEquals", ("a", "b"), "b")
    assert not holds("StringNotEquals", ("a", "b"), "b")
    assert holds("StringNotEquals", ("a", "b"), "c")


@pytest.mark.parametrize(
    ("operator", "actual", "expected"),
    [
        ("StringEquals", ("a",), False),
        ("StringNotEquals", ("z",), False),
        ("ForAllValues:StringEquals", ("a", "b"), True),
        ("ForAllValues:StringEquals", ("a", "z"), False),
        ("ForAllValues:StringEquals", (), True),
        ("ForAnyValue:StringEquals", ("z", "b"), True),
        ("ForAnyValue:StringEquals", ("z",), False),
        ("ForAnyValue:StringEquals", (), False),
        ("ForAllValues:StringNotEquals", ("y", "z"), True),
        ("ForAnyValue:StringNotEquals", ("a", "b"), False),
    ],
)
def test_sets(operator: str, actual: tuple[str, ...], *, expected: bool) -> None:
    """A many-valued key needs a set prefix (kms.md §7.2)."""
    assert holds(operator, ("a", "b"), actual) is expected


@pytest.mark.parametrize(
    ("operator", "value"),
    [
        ("StringMatches", "a"),
        ("NullIfExists", "true"),
        ("ForAnyValue:Null", "true"),
        ("Null", "maybe"),
        ("NumericEquals", "seven"),
        ("NumericEquals", "NaN"),
        ("DateEquals", "yesterday"),
        ("Bool", "yes"),
        ("IpAddress", "10.0.0.0/99"),
        ("BinaryEquals", "?"),
        ("", "a"),
    ],
)
def test_what_cannot_be_meant_is_refused(operator: str, value: str) -> None:
    """A typing error never switches a statement off silently."""
    with pytest.raises(ValueError):
        parse_condition(operator, "k", (value,))


def test_variables() -> None:
    """Text from a request is never a wildcard, and an unknown variable never matches (kms.md §7.3)."""
    assert holds("StringEquals", "${aws:UserName}", "al*ce")
    assert holds("StringLike", "${aws:username}", "al*ce")
    assert not holds("StringLike", "${aws:username}", "alice")
    assert not holds("StringEquals", "${aws:username}", "al*ce", variables=False)
    assert holds("StringEquals", "${aws:username}", "${aws:username}", variables=False)
    assert holds("StringEquals", "${nobody, 'someone'}", "someone")
    assert holds("StringLike", "${*}${?}${$}", "*?$")
    assert not holds("StringLike", "${*}", "anything")
    assert not holds("StringEquals", "${nobody}", "x")
    assert holds("StringNotEquals", "${nobody}", "x")
    assert not holds("StringEquals", "${many}", "a")


def test_arns_are_compared_part_by_part() -> None:
    """A wildcard stays inside its part; the sixth part keeps its colons; a variable brings no new parts."""
    arn = "arn:aws:kms:us-east-1:111122223333:key/x"
    assert arn_matches("arn:aws:kms:*:111122223333:key/*", None, arn)
    assert not arn_matches("arn:*:key/x", None, arn)
    assert not arn_matches("arn:aws:${v}:key/x", {"v": "kms:us-east-1:111122223333"}, arn)
    assert arn_matches("arn:aws:kms:us-east-1:111122223333:key/${v}", {"v": "x"}, arn, variables_from=5)
    assert not arn_matches("arn:aws:kms:${v}:111122223333:key/x", {"v": "us-east-1"}, arn, variables_from=5)


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 16_000 + "b", "*" + "a" * 16_000 + "b", "*" + "a" * 8_000 + "?" + "a" * 8_000 + "b*", "*" + "?" * 32_000,
        "*" + "?a" * 16_000 + "b*",
    ],
)  # fmt: skip
def test_a_hostile_pattern_takes_no_time(pattern: str) -> None:
    """The longest that a policy can have, and the longest value of a request: nothing stalls the service."""
    condition, began = parse_condition("StringLike", "k", (pattern,)), time.process_time()
    condition.holds({"k": "a" * 1_000_000}, variables=True)
    assert time.process_time() - began < 2


def test_a_pattern_that_would_take_long_refuses_the_request() -> None:
    """Neither an Allow nor a Deny can be told then."""
    condition, began = parse_condition("StringLike", "k", ("*" + "a?" * 16_000 + "b*",)), time.process_time()
    with pytest.raises(KmsError, match="too long for a pattern"):
        condition.holds({"k": "a" * 1_000_000}, variables=True)
    assert time.process_time() - began < 5


def test_variables_that_never_end_take_no_time() -> None:
    """Half a variable, thousands of times."""
    began = time.process_time()
    for text in ("${", "${a", "${a, '", "${a,"):
        assert variables_of(text * 8_000) == []
        assert expand(text * 8_000, {}, wild=True)
    assert time.process_time() - began < 2


@given(st.text("ab*?", max_size=10), st.text("ab", max_size=10))
@settings(max_examples=1000, deadline=None)
def test_patterns_are_as_regular_expressions_have_them(pattern: str, text: str) -> None:
    """With both wildcards, wherever they stand, short or long."""
    regex = "".join({"*": "[ab]*", "?": "[ab]"}.get(char, char) for char in pattern)
    tokens = expand(pattern, None, wild=True)
    assert tokens is not None
    expected = re.fullmatch(regex, text) is not None
    assert matches(tokens, text) is _long_matches(tokens, text) is expected
