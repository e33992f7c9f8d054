"""Policy documents: JSON text to statements that can be evaluated, or a refusal (kms.md §8.6).

Core: text in; `PolicyDocument` out.
"""

from __future__ import annotations

import enum
import functools
import json
from dataclasses import dataclass, field
from typing import Any, Final

from alcove.kms.errors import KmsError
from alcove.kms.policy.conditions import Condition, Quantifier, parse_condition
from alcove.kms.policy.principals import Principal, parse_principals
from alcove.kms.policy.text import variables_of

MAX_POLICY_BYTES: Final = 32_768  # §8.6, the service's quota
USUAL_POLICY: Final = 4096  # characters
VARIABLES_VERSION: Final = "2012-10-17"
INVALID_PRINCIPALS: Final = "Policy contains a statement with one or more invalid principals."
OVERLY_PERMISSIVE: Final = (
    "OverlyPermissiveCondition:EncryptionContext: Using the ForAllValues set operator with a single-valued condition "
    "key matches requests without the specified encryption context or with an unspecified encryption context. To fix, "
    "remove ForAllValues."
)
_SINGLE_VALUED = ("kms:encryptioncontext:", "aws:requesttag/")
_STATEMENT_KEYS: Final = frozenset(
    {"Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition"}
)


class PolicyKind(enum.Enum):
    """Where a policy hangs: on a key, or on an identity (which then is its principal)."""

    KEY = "key"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class Element:
    """``Action``/``Resource`` or its ``Not`` form; None for values means that it is missing."""

    values: tuple[str, ...] | None
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement; `index` counts from 1."""

    index: int
    sid: str | None
    allow: bool
    principals: tuple[Principal, ...]
    not_principal: bool
    actions: Element
    resources: Element
    conditions: tuple[Condition, ...]

    @property
    def label(self) -> str:
        """How messages and the audit log call it."""
        return self.sid or f"statement {self.index}"


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """A parsed policy; `variables` says whether its version has policy variables.

    Attributes:
        size: Characters of its text.
        reads: The condition keys, in lower case, whose values can make a difference to it.
    """

    kind: PolicyKind
    variables: bool
    statements: tuple[Statement, ...]
    size: int = field(repr=False, compare=False)
    reads: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        conditions = [condition for statement in self.statements for condition in statement.conditions]
        texts = [value for condition in conditions for value in condition.values]
        texts += [value for statement in self.statements for value in statement.resources.values or ()]
        names = {condition.key.lower() for condition in conditions}
        names |= {name for text in texts for name in variables_of(text)} if self.variables else set()
        object.__setattr__(self, "reads", tuple(sorted(names)))


def malformed(message: str) -> KmsError:
    """A MalformedPolicyDocumentException."""
    return KmsError("MalformedPolicyDocumentException", message)


def parse_policy(text: str, kind: PolicyKind = PolicyKind.KEY) -> PolicyDocument:
    """A policy from its JSON text; a pure function of it, so its results are kept: more of those of usual length.

    Raises:
        KmsError: LimitExceededException, or MalformedPolicyDocumentException that says what is wrong and where.
    """
    return (_usual if len(text) <= USUAL_POLICY else _long)(text, kind)


def _parse(text: str, kind: PolicyKind) -> PolicyDocument:
    if len(text.encode()) > MAX_POLICY_BYTES:
        raise KmsError("LimitExceededException", f"a policy has at most {MAX_POLICY_BYTES} bytes")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise malformed(f"the policy is not JSON: {error}") from error
    if not isinstance(value, dict) or not set(value) <= {"Version", "Id", "Statement"}:
        raise malformed("a policy is a JSON object of Version, Id and Statement")
    version = value.get("Version", "2008-10-17")
    if version not in (VARIABLES_VERSION, "2008-10-17") or not isinstance(value.get("Id", ""), str):
        raise malformed("Version must be 2012-10-17 or 2008-10-17, and Id a string")
    raw = value.get("Statement")
    statements = [raw] if isinstance(raw, dict) else raw
    if not isinstance(statements, list) or not statements:
        raise malformed("a policy needs at least one statement")
    parsed = tuple(_statement(statement, index, kind) for index, statement in enumerate(statements, 1))
    return PolicyDocument(kind, version == VARIABLES_VERSION, parsed, len(text))


# What is parsed has up to eight times the bytes of its text: the largest that these can keep is some 200 MB.
_usual = functools.lru_cache(maxsize=4096)(_parse)
_long = functools.lru_cache(maxsize=256)(_parse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _statement(value: Any, index: int, kind: PolicyKind) -> Statement:
    where = f"statement {index}"
    if not isinstance(value, dict) or not set(value) <= _STATEMENT_KEYS:
        raise malformed(f"{where} is not an object of {', '.join(sorted(_STATEMENT_KEYS))}")
    if value.get("Effect") not in ("Allow", "Deny") or not isinstance(value.get("Sid", ""), str):
        raise malformed(f"{where}: Effect must be Allow or Deny, and Sid a string")
    return Statement(
        index=index,
        sid=value.get("Sid") or None,
        allow=value["Effect"] == "Allow",
        principals=_principals(value, where, kind),
        not_principal="NotPrincipal" in value,
        actions=_element(value, "Action", where),
        resources=_element(value, "Resource", where),
        conditions=_conditions(value.get("Condition", {}), where, allow=value["Effect"] == "Allow"),
    )


def _principals(value: dict[str, Any], where: str, kind: PolicyKind) -> tuple[Principal, ...]:
    given = [name for name in ("Principal", "NotPrincipal") if name in value]
    if kind is PolicyKind.IDENTITY:
        if given:
            raise malformed(f"{where}: a policy of an identity names no principal")
        return ()
    if len(given) != 1:
        raise malformed(INVALID_PRINCIPALS)
    try:
        return parse_principals(value[given[0]])
    except ValueError as error:
        raise malformed(f"{INVALID_PRINCIPALS} ({where}: {error})") from error


def _element(value: dict[str, Any], name: str, where: str) -> Element:
    if name in value and f"Not{name}" in value:
        raise malformed(f"{where} has both {name} and Not{name}")
    negated = f"Not{name}" in value
    raw = value.get(f"Not{name}" if negated else name)
    if raw is None:
        return Element(None)
    values = [raw] if isinstance(raw, str) else raw
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise malformed(f"{where}: {name} must be a string or a list of strings")
    return Element(tuple(values), negated)


def _conditions(value: Any, where: str, *, allow: bool) -> tuple[Condition, ...]:
    if not isinstance(value, dict):
        raise malformed(f"{where}: Condition must be an object")
    found = []
    for operator, keys in value.items():
        if not isinstance(keys, dict):
            raise malformed(f"{where}: the condition {operator} must be an object")
        for key, raw in keys.items():
            found.append(_condition(operator, key, raw, where, allow=allow))
    return tuple(found)


def _condition(operator: str, key: str, raw: Any, where: str, *, allow: bool) -> Condition:
    values = raw if isinstance(raw, list) else [raw]
    if not all(isinstance(v, (str, bool, int, float)) for v in values):
        raise malformed(f"{where}: the values of {operator} on {key} must be strings, booleans or numbers")
    texts = tuple(json.dumps(v) if not isinstance(v, str) else v for v in values)
    try:
        condition = parse_condition(operator, key, texts, allow=allow)
    except ValueError as error:
        raise malformed(f"{where}: {error}") from error
    if condition.quantifier is Quantifier.ALL and key.lower().startswith(_SINGLE_VALUED):
        raise malformed(OVERLY_PERMISSIVE)
    return condition
