"""Condition operators: every one of them, and what a missing key means (kms.md §6.3, §7).

Core: a condition and a request context in; whether it holds out.

Four rules decide what no comparison can:
    a missing key     positive operators are false, negated ones and ...IfExists are true, Null says so itself
    several values    OR for positive operators, AND for negated ones (the value must match none)
    a multi-valued key needs ForAllValues or ForAnyValue; with a plain operator it does not match
    a PCR of zeros    is one of an enclave in debug mode: in an Allow, a condition on it needs zeros among its values
"""

from __future__ import annotations

import base64
import binascii
import enum
import ipaddress
import operator as compare
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from alcove.kms.policy.catalogue import is_measured
from alcove.kms.policy.text import Context, arn_matches, expand, matches

Comparison = Callable[[str, str, Context | None], bool | None]
"""(policy value, request value, variables' context) → match; None when a variable cannot be resolved."""


class Quantifier(enum.Enum):
    """The set prefix of an operator."""

    NONE = ""
    ALL = "ForAllValues:"
    ANY = "ForAnyValue:"


@dataclass(frozen=True, slots=True)
class Base:
    """One operator without prefix and suffix."""

    name: str
    compare: Comparison
    negated: bool = False
    check: Callable[[str], Any] = str
    """Parses a policy value; raises ValueError for one that cannot be meant."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one key with its values, as the policy has them."""

    base: Base
    quantifier: Quantifier
    if_exists: bool
    key: str
    values: tuple[str, ...]
    no_zeros: bool = False
    """Whether it is false for a PCR of zeros, whatever its operator."""

    @property
    def operator(self) -> str:
        """The operator's full name."""
        return f"{self.quantifier.value}{self.base.name}{'IfExists' if self.if_exists else ''}"

    def holds(self, context: Context, *, variables: bool) -> bool:
        """Whether the condition is true; variables are read only in policies of version 2012-10-17."""
        actual = context.get(self.key.lower())
        if self.no_zeros and isinstance(actual, str) and not actual.strip("0"):
            return False
        if self.base.name == "Null":
            return any((value.lower() == "true") == (actual is None) for value in self.values)
        if actual is None and (self.if_exists or self.quantifier is Quantifier.NONE):
            return self.if_exists or self.base.negated
        items = () if actual is None else (actual,) if isinstance(actual, str) else actual
        scope = context if variables else None
        if self.quantifier is Quantifier.ALL:
            return all(self._one(item, scope) for item in items)
        if self.quantifier is Quantifier.ANY:
            return any(self._one(item, scope) for item in items)
        return isinstance(actual, str) and self._one(actual, scope)

    def _one(self, item: str, context: Context | None) -> bool:
        found = any(self.base.compare(value, item, context) for value in self.values)
        return found != self.base.negated


def parse_condition(operator: str, key: str, values: tuple[str, ...], *, allow: bool = True) -> Condition:
    """A condition of a statement that allows or denies, from its policy text.

    Raises:
        ValueError: Unknown operator, or a value that its family cannot read: a typing error must never switch a Deny
            off silently (§7.2).
    """
    match = _OPERATOR.fullmatch(operator)
    base = OPERATORS.get(match[2].lower()) if match else None
    if match is None or base is None or (base.name == "Null" and (match[1] or match[3])):
        raise ValueError(f"unknown condition operator {operator!r}")
    if not key or not values:
        raise ValueError(f"the condition {operator} needs a key and a value")
    for value in values:
        try:
            base.check(value)
        except ValueError:
            raise ValueError(f"{value!r} is no value for {operator} on {key}") from None
    no_zeros = allow and is_measured(key) and not any("0" in value and not value.strip("0*?") for value in values)
    return Condition(base, _QUANTIFIERS[(match[1] or "").lower()], bool(match[3]), key, values, no_zeros)


def _string(change: Callable[[str], str] = str) -> Comparison:
    def equal(value: str, item: str, context: Context | None) -> bool | None:
        tokens = expand(value, context, wild=False)
        return None if tokens is None else change("".join(str(t) for t in tokens)) == change(item)

    return equal


def _like(value: str, item: str, context: Context | None) -> bool | None:
    tokens = expand(value, context, wild=True)
    return None if tokens is None else matches(tokens, item)


def _arn(value: str, item: str, context: Context | None) -> bool | None:
    return arn_matches(value, context, item)


def _parsed(parse: Callable[[str], Any], relation: Callable[[Any, Any], Any]) -> Comparison:
    """A comparison of parsed values, the request's on the left; what does not parse does not match."""

    def related(value: str, item: str, context: Context | None) -> bool:
        del context  # no variables in these families (§7.3)
        try:
            return bool(relation(parse(item), parse(value)))
        except ValueError:
            return False

    return related


def _number(text: str) -> Decimal:
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError(text) from None
    if not value.is_finite():
        raise ValueError(text)
    return value


def _date(text: str) -> Decimal:
    """Seconds since the epoch, from such a number or ISO 8601; without a zone it is UTC."""
    try:
        return _number(text)
    except ValueError:
        moment = datetime.fromisoformat(text.strip())
    return Decimal(str((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))


def _bool(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(text)
    return text.lower() == "true"


def _bool_or_variable(text: str) -> bool:
    return "${" in text or _bool(text)


def _compare_bool(value: str, item: str, context: Context | None) -> bool | None:
    tokens = expand(value, context, wild=False)
    if tokens is None:
        return None
    return _parsed(_bool, compare.eq)("".join(str(t) for t in tokens), item, None)


def _binary(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError(text) from None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text.strip(), strict=False)


def _within(item: Any, network: Any) -> bool:
    return item.version == network.version and bool(item.subnet_of(network))


def _ordered(family: str, parse: Callable[[str], Any]) -> list[Base]:
    relations = {
        "LessThan": compare.lt,
        "LessThanEquals": compare.le,
        "GreaterThan": compare.gt,
        "GreaterThanEquals": compare.ge,
    }
    equal = _parsed(parse, compare.eq)
    bases = [Base(f"{family}{name}", _parsed(parse, relation), check=parse) for name, relation in relations.items()]
    return [
        Base(f"{family}Equals", equal, check=parse),
        Base(f"{family}NotEquals", equal, negated=True, check=parse),
        *bases,
    ]


_BASES: Final = [
    Base("StringEquals", _string()),
    Base("StringNotEquals", _string(), negated=True),
    Base("StringEqualsIgnoreCase", _string(str.casefold)),
    Base("StringNotEqualsIgnoreCase", _string(str.casefold), negated=True),
    Base("StringLike", _like),
    Base("StringNotLike", _like, negated=True),
    *_ordered("Numeric", _number),
    *_ordered("Date", _date),
    Base("Bool", _compare_bool, check=_bool_or_variable),
    Base("BinaryEquals", _parsed(_binary, compare.eq), check=_binary),
    Base("IpAddress", _parsed(_network, _within), check=_network),
    Base("NotIpAddress", _parsed(_network, _within), negated=True, check=_network),
    Base("ArnEquals", _arn),
    Base("ArnLike", _arn),
    Base("ArnNotEquals", _arn, negated=True),
    Base("ArnNotLike", _arn, negated=True),
    Base("Null", _parsed(_bool, compare.eq), check=_bool),
]
OPERATORS: Final = {base.name.lower(): base for base in _BASES}
_QUANTIFIERS: Final = {quantifier.value.lower(): quantifier for quantifier in Quantifier}
_OPERATOR = re.compile(r"(ForAllValues:|ForAnyValue:)?([A-Za-z]+?)(IfExists)?", re.IGNORECASE | re.ASCII)
