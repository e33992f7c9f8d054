"""Lints of the conditions of one statement (kms.md §6.3, §8.9).

Core: a statement in; codes with sentences out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from alcove.kms.policy.catalogue import is_attestation, is_known, is_never_present, like
from alcove.kms.policy.conditions import Condition, Quantifier
from alcove.kms.policy.document import Statement

PCR_DIGITS: Final = 96  # SHA-384
Pair = tuple[str, str]
_REPAIR: Final = "use StringNotEqualsIgnoreCase, or a Deny with Null"


def of(statement: Statement, *, releasing: bool) -> Iterator[Pair]:
    """Codes and sentences; `releasing` says that the statement lets out what the key protects."""
    for condition in statement.conditions:
        yield from _key(condition)
        if is_attestation(condition.key):
            yield from _values(condition)
            if statement.allow and releasing and condition.holds({}, variables=False):
                yield _admits(condition)
    yield from _image(statement)
    if not statement.allow:
        yield from _deny(statement)


def _key(condition: Condition) -> Iterator[Pair]:
    key = condition.key
    if is_never_present(key):
        yield "absent-key", f"no request to this service has {key}"
    elif not is_known(key):
        meant = like(key)
        yield "unknown-key", f"{key} is no condition key" + (f"; is it {meant}?" if meant else "")


def _admits(condition: Condition) -> Pair:
    """Why a condition of an Allow holds for a call without a document."""
    operator, key = condition.operator, condition.key
    if condition.base.name == "Null":
        return "null-trap", f"Null on {key} is met by calls without a document"
    if condition.if_exists:
        return "if-exists-trap", f"{operator} on {key} is met by calls without a document; leave out IfExists"
    if condition.quantifier is Quantifier.ALL:
        return "for-all-trap", f"{operator} on {key} is met by calls without a document; leave out ForAllValues"
    return "negated-trap", f"{operator} on {key} is met by calls without a document; name what is allowed instead"


def _values(condition: Condition) -> Iterator[Pair]:
    if condition.base.name == "Null":
        return
    if not condition.base.name.startswith("String"):
        yield "pcr-operator", f"{condition.operator} on {condition.key}: the value is text; use StringEqualsIgnoreCase"
        return
    for value in condition.values:
        yield from _value(condition, value)


def _value(condition: Condition, value: str) -> Iterator[Pair]:
    key, pattern = condition.key, condition.base.name in {"StringLike", "StringNotLike"}
    shown = value if len(value) <= 20 else f"{value[:16]}…"
    if value and not value.strip("0"):
        yield "zero-pcr", f"{key} is zero: that is an enclave in debug mode, which its parent can read"
    if value.lower().startswith("0x"):
        yield "pcr-prefix", f"{key} begins with 0x, and the value that is compared does not"
    elif not re.fullmatch(r"[0-9A-Fa-f*?]+" if pattern else r"[0-9A-Fa-f]+", value, re.ASCII) and "${" not in value:
        yield "pcr-form", f"{shown} is not hexadecimal, so {key} is never that"
    elif "*" not in value and len(value) != PCR_DIGITS and "${" not in value:
        yield "pcr-length", f"{key} has {PCR_DIGITS} digits, and here are {len(value)}"
    if "IgnoreCase" not in condition.base.name and value != value.lower() and "${" not in value:
        yield "pcr-case", f"{key} is compared as lower-case digits; use StringEqualsIgnoreCase"


def _image(statement: Statement) -> Iterator[Pair]:
    """ImageSha384 is PCR0: two that differ can never both hold."""
    found = {
        condition.key.lower().rpartition(":")[2]: {value.lower() for value in condition.values}
        for condition in statement.conditions
        if is_attestation(condition.key) and condition.base.name in {"StringEquals", "StringEqualsIgnoreCase"}
    }
    image, pcr0 = found.get("imagesha384"), found.get("pcr0")
    if image and pcr0 and not image & pcr0:
        yield "image-mismatch", "ImageSha384 is PCR0, and the statement wants them to differ"


def _deny(statement: Statement) -> Iterator[Pair]:
    about = [condition for condition in statement.conditions if is_attestation(condition.key)]
    missed = [condition for condition in about if not condition.holds({}, variables=False)]
    for condition in missed:
        what = f"{condition.operator} on {condition.key}"
        yield "deny-misses", f"{what} is not met by calls without a document, so this Deny lets them pass; {_REPAIR}"
    if not missed and len({condition.key.lower() for condition in about if condition.base.negated}) > 1:
        yield "deny-all-differ", "this Deny takes hold only when every one of its PCRs differs; write one Deny for each"
