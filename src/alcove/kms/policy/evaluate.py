"""The decision: allow or deny, and why (kms.md §8.1).

Core: caller, action, resource, context and policies in; a `Decision` that explains itself out.

The recipe, numbered as the code is:
    1 an explicit Deny in the key policy, then in an identity policy, ends it
    2 without a key, an identity policy must allow
    3 a key policy that names the caller allows, when the key is of the caller's account
    4 a key policy that names the caller's account lets the identity policies decide
    5 everything else is denied
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from alcove.kms.policy.conditions import Condition
from alcove.kms.policy.document import Element, PolicyDocument, PolicyKind, Statement
from alcove.kms.policy.principals import Caller, Reach
from alcove.kms.policy.text import Context, Value, arn_matches, like

_NOTHING: Final[Context] = MappingProxyType({})


class Access(NamedTuple):
    """What is asked for.

    Attributes:
        caller: Who asks.
        action: ``kms:<Permission>``.
        key_arn: The key, or None for operations without one.
        context: The request context.
        identity_context: Condition keys that identity policies see beside it; key policies do not have them (§6.1).
    """

    caller: Caller
    action: str
    key_arn: str | None
    context: Context
    identity_context: Context = _NOTHING

    @property
    def same_account(self) -> bool:
        """Whether the key is of the caller's account."""
        return self.key_arn is None or self.key_arn.split(":")[4] == self.caller.account


class Why(enum.Enum):
    """What decided."""

    KEY_POLICY_ALLOWS = "the key policy allows"
    IDENTITY_ALLOWS = "an identity policy allows"
    KEY_POLICY_DENIES = "an explicit deny in the key policy"
    IDENTITY_DENIES = "an explicit deny in an identity policy"
    KEY_POLICY_SILENT = "no statement of the key policy allows"
    IDENTITY_SILENT = "no identity policy allows"
    GRANT_ALLOWS = "a grant allows"


@dataclass(frozen=True, slots=True)
class Failure:
    """A condition that kept a statement from applying, or in a Deny the condition that made it apply."""

    statement: str
    operator: str
    key: str
    expected: tuple[str, ...]
    actual: Value | None
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome; `failures` explain a denial, `statement` names what decided."""

    allowed: bool
    why: Why
    statement: str | None = None
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class _Match:
    """One statement against one request: everything but its conditions, then those that do not hold."""

    statement: Statement
    reach: Reach
    unmet: tuple[Condition, ...]

    @property
    def applies(self) -> bool:
        return not self.unmet


def evaluate(access: Access, key_policy: PolicyDocument | None, identities: Sequence[PolicyDocument]) -> Decision:
    """The decision on one request (§8.1); `key_policy` is None exactly when there is no key."""
    on_key = _candidates(access, [key_policy] if key_policy else [])
    if access.identity_context:
        access = access._replace(context={**access.context, **access.identity_context})
    on_identity = _candidates(access, identities)
    for found, why in ((on_key, Why.KEY_POLICY_DENIES), (on_identity, Why.IDENTITY_DENIES)):  # 1
        deny = next((m for m in found if m.applies and not m.statement.allow), None)
        if deny:
            failures = _failures(access, [(deny.statement, c) for c in deny.statement.conditions])
            return Decision(allowed=False, why=why, statement=deny.statement.label, failures=failures)
    ident = next((m for m in on_identity if m.applies and m.statement.allow), None)
    named = [m for m in on_key if m.statement.allow and m.applies]
    direct = next((m for m in named if m.reach is Reach.DIRECT), None)
    if key_policy is None:  # 2
        return _allowed(Why.IDENTITY_ALLOWS, ident) if ident else _denied(access, Why.IDENTITY_SILENT, on_identity)
    if direct and (access.same_account or ident):  # 3
        return _allowed(Why.KEY_POLICY_ALLOWS, direct)
    if named and ident:  # 4
        return _allowed(Why.IDENTITY_ALLOWS, ident)
    near = any(m.unmet and m.reach is Reach.DIRECT and m.statement.allow for m in on_key)  # 5
    if named and not near:
        return _denied(access, Why.IDENTITY_SILENT, on_identity)
    return _denied(access, Why.KEY_POLICY_SILENT, on_key)


def _candidates(access: Access, policies: Sequence[PolicyDocument]) -> list[_Match]:
    """The statements that speak of this caller, action and resource, with the conditions that do not hold."""
    found = []
    for policy in policies:
        for statement in policy.statements:
            reach = reach_of(statement, access.caller) if policy.kind is PolicyKind.KEY else Reach.DIRECT
            if reach is Reach.NONE or not acts(statement.actions, access.action):
                continue
            if not concerns(statement, policy, access):
                continue
            holds = [c.holds(access.context, variables=policy.variables) for c in statement.conditions]
            unmet = tuple(c for c, held in zip(statement.conditions, holds, strict=True) if not held)
            found.append(_Match(statement, reach, unmet))
    return found


def reach_of(statement: Statement, caller: Caller) -> Reach:
    """How a statement of a key policy names the caller."""
    reach = max(principal.reaches(caller) for principal in statement.principals)
    if statement.not_principal:
        return Reach.DIRECT if reach is Reach.NONE else Reach.NONE
    return reach


def acts(element: Element, action: str) -> bool:
    """Whether an Action element is about an action."""
    if element.values is None:
        return False  # accepted without effect (§8.6)
    return any(like(value.lower(), action.lower()) for value in element.values) != element.negated


def concerns(statement: Statement, policy: PolicyDocument, access: Access) -> bool:
    """Whether a statement is about the key that is asked for."""
    element = statement.resources
    if element.values is None:
        return False
    context = access.context if policy.variables else None
    found = any(_is_resource(value, access.key_arn, context) for value in element.values)
    return found != element.negated


def _is_resource(value: str, key_arn: str | None, context: Context | None) -> bool:
    if value == "*":
        return True
    return key_arn is not None and bool(arn_matches(value, context, key_arn, variables_from=5))


def _allowed(why: Why, match: _Match) -> Decision:
    return Decision(allowed=True, why=why, statement=match.statement.label)


def _denied(access: Access, why: Why, near: Sequence[_Match]) -> Decision:
    pairs = [(m.statement, c) for m in near if m.statement.allow for c in m.unmet]
    return Decision(allowed=False, why=why, failures=_failures(access, pairs))


def _failures(access: Access, pairs: Sequence[tuple[Statement, Condition]]) -> tuple[Failure, ...]:
    return tuple(
        Failure(s.label, c.operator, c.key, c.values, access.context.get(c.key.lower()), c.base.negated)
        for s, c in pairs
    )
