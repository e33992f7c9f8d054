"""Decisions that were made before, for requests that no policy can tell apart (kms.md §8.1).

Core: values in, decisions out; what is remembered is bounded.

A decision is a function of caller, action, resource, the policies, and the values of the condition keys that those
policies read. All of that is what a decision is remembered under, so nothing has to be forgotten when a policy changes:
the changed policy is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from alcove.kms.policy.document import PolicyDocument
from alcove.kms.policy.evaluate import Access, Decision, evaluate

MAX_REMEMBERED: Final = 4096
MAX_TEXT: Final = 16 << 20  # characters of the policies that are kept with them, which take up to eight times as much
MAX_VALUES: Final = 2048  # characters of condition values under which a decision is still remembered


class Decisions:
    """The decisions of one process."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[Decision, Sequence[PolicyDocument | None]]] = {}
        self._size = 0  # characters of policies that are kept

    def decide(
        self, access: Access, key_policy: PolicyDocument | None, identities: Sequence[PolicyDocument]
    ) -> Decision:
        """What `evaluate` says."""
        policies = (key_policy, *identities)
        values = tuple(
            [
                (access.context.get(key), access.identity_context.get(key))
                for policy in policies
                if policy is not None
                for key in policy.reads
            ]
        )
        # The policies are kept with the decision, so an id stands for one policy as long as the decision is remembered.
        name = (access.caller, access.action, access.key_arn, *map(id, policies), values)
        known = self._known.get(name)
        if known is not None:
            return known[0]
        decision = evaluate(access, key_policy, identities)
        if len(str(values)) <= MAX_VALUES:
            self._known[name] = (decision, policies)
            self._size += _size(policies)
            while len(self._known) > MAX_REMEMBERED or self._size > MAX_TEXT:
                _, oldest = self._known.pop(next(iter(self._known)))
                self._size -= _size(oldest)
        return decision


def _size(policies: Sequence[PolicyDocument | None]) -> int:
    return sum(policy.size for policy in policies if policy)
