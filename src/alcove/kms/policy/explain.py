"""A denial in words: AWS's sentence, and after it what was asked and what was found (kms.md §10.4).

Core: an access and its decision in; text out.

AWS's sentence alone is the most frequent support question of attested keys. PCR values are not secret, so those are
shown; of other conditions the client learns the key alone, and the audit log has the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from alcove.kms.policy.evaluate import Access, Decision, Failure, Why

ATTESTATION_PREFIX: Final = "kms:recipientattestation:"
MAX_REASONS: Final = 4
_ENDINGS: Final = {
    Why.KEY_POLICY_SILENT: "because no resource-based policy allows the {action} action",
    Why.KEY_POLICY_DENIES: "with an explicit deny in a resource-based policy",
    Why.IDENTITY_SILENT: "because no identity-based policy allows the {action} action",
    Why.IDENTITY_DENIES: "with an explicit deny in an identity-based policy",
}


def denial(access: Access, decision: Decision, *, attested: bool) -> str:
    """The message of an AccessDeniedException.

    Args:
        access: What was asked for.
        decision: A decision that denies.
        attested: Whether a valid attestation document came with the request.
    """
    asked = f"User: {access.caller.arn} is not authorized to perform: {access.action}"
    ending = _ENDINGS[decision.why].format(action=access.action)
    reasons = explain(decision, attested=attested)
    tail = f" ({reasons})" if reasons else ""
    return f"{asked} on resource: {access.key_arn or '*'} {ending}{tail}"


def explain(decision: Decision, *, attested: bool) -> str:
    """Which conditions decided, in one line; empty when none did."""
    denies = decision.why in {Why.KEY_POLICY_DENIES, Why.IDENTITY_DENIES}
    owner = "the key policy" if decision.why in {Why.KEY_POLICY_DENIES, Why.KEY_POLICY_SILENT} else "the policy"
    missing = [f for f in decision.failures if _is_attestation(f) and not attested]
    others = [f for f in decision.failures if f not in missing]
    reasons = [_undocumented(missing)] if missing else []
    reasons += dict.fromkeys(_reason(f, owner, denies=denies) for f in others)
    return "; ".join(reasons[:MAX_REASONS])


def _undocumented(missing: Sequence[Failure]) -> str:
    keys = " and ".join(dict.fromkeys(failure.key for failure in missing))
    return f"no attestation document was given, so there is no {keys}"


def _is_attestation(failure: Failure) -> bool:
    return failure.key.lower().startswith(ATTESTATION_PREFIX)


def _reason(failure: Failure, owner: str, *, denies: bool) -> str:
    if not _is_attestation(failure):
        verb = "is met" if denies else "is not met"
        return f"the condition {failure.operator} on {failure.key} of {failure.statement} {verb}"
    actual = failure.actual
    if actual is None:
        return f"{failure.key} is not in the attestation document"
    values = _listed(failure.expected)
    wish = "denies" if denies != failure.negated else "requires"
    if failure.negated and not denies:
        wish = "excludes"
    if failure.operator == "Null":
        wish, values = "has a condition on", "it"
    if isinstance(actual, str) and actual and not actual.strip("0"):
        unsigned = "the image is not signed, or " if failure.key.lower().endswith(":pcr8") else ""
        return f"{failure.key} is zero: {unsigned}the enclave runs in debug mode; {owner} {wish} {values}"
    return f"{failure.key} is {actual if isinstance(actual, str) else _listed(actual)} and {owner} {wish} {values}"


def _listed(values: Sequence[str]) -> str:
    return " or ".join(values)
