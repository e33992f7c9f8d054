"""A decision, statement by statement (kms.md §8.1).

Core: what was asked and the policies in; a step for every statement out. `evaluate` decides; this shows what it saw.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from alcove.kms.policy.document import PolicyDocument, PolicyKind, Statement
from alcove.kms.policy.evaluate import Access, acts, concerns, reach_of
from alcove.kms.policy.principals import Reach
from alcove.kms.policy.text import Value


class Verdict(enum.StrEnum):
    """Whether a statement applies, and what kept it from it."""

    APPLIES = "applies"
    OTHERS = "is about other principals"
    ACTIONS = "is about other actions"
    RESOURCES = "is about other resources"
    CONDITIONS = "its conditions are not met"


@dataclass(frozen=True, slots=True)
class Checked:
    """One condition, what the request had, and whether it held."""

    operator: str
    key: str
    expected: tuple[str, ...]
    actual: Value | None
    holds: bool

    def to_json(self) -> dict[str, object]:
        """The object that the command prints."""
        actual = list(self.actual) if isinstance(self.actual, tuple) else self.actual
        return {
            "Operator": self.operator,
            "Key": self.key,
            "Expected": list(self.expected),
            "Actual": actual,
            "Holds": self.holds,
        }


@dataclass(frozen=True, slots=True)
class Step:
    """One statement; `account` says that it names the caller's account, and so lets identity policies decide."""

    policy: str
    statement: str
    allow: bool
    verdict: Verdict
    account: bool = False
    conditions: tuple[Checked, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The object that the command prints."""
        return {
            "Policy": self.policy,
            "Statement": self.statement,
            "Effect": "Allow" if self.allow else "Deny",
            "Verdict": self.verdict.value,
            "Delegates": self.account,
            "Conditions": [condition.to_json() for condition in self.conditions],
        }


def walk(access: Access, policies: Iterable[tuple[str, PolicyDocument]]) -> Iterator[Step]:
    """A step for every statement of the policies, which have names, in their order."""
    wider = access._replace(context={**access.context, **access.identity_context})
    for name, policy in policies:
        seen = access if policy.kind is PolicyKind.KEY else wider
        for statement in policy.statements:
            yield _step(seen, name, policy, statement)


def _step(access: Access, name: str, policy: PolicyDocument, statement: Statement) -> Step:
    reach = reach_of(statement, access.caller) if policy.kind is PolicyKind.KEY else Reach.DIRECT
    conditions: tuple[Checked, ...] = ()
    if reach is Reach.NONE:
        verdict = Verdict.OTHERS
    elif not acts(statement.actions, access.action):
        verdict = Verdict.ACTIONS
    elif not concerns(statement, policy, access):
        verdict = Verdict.RESOURCES
    else:
        conditions = tuple(_check(access, policy, statement))
        verdict = Verdict.APPLIES if all(c.holds for c in conditions) else Verdict.CONDITIONS
    return Step(name, statement.label, statement.allow, verdict, reach is Reach.ACCOUNT, conditions)


def _check(access: Access, policy: PolicyDocument, statement: Statement) -> Iterator[Checked]:
    for c in statement.conditions:
        actual = access.context.get(c.key.lower())
        yield Checked(c.operator, c.key, c.values, actual, c.holds(access.context, variables=policy.variables))
