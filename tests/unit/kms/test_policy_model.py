"""The policy engine against a second evaluator, on generated policies and requests (kms.md §26)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.kms import naive_policy as naive

from alcove.kms.policy.conditions import OPERATORS
from alcove.kms.policy.decisions import Decisions
from alcove.kms.policy.document import PolicyKind, parse_policy
from alcove.kms.policy.evaluate import Access, evaluate
from alcove.kms.policy.principals import Caller

OURS, OTHERS = "111122223333", "444455556666"
ALICE, BOB = f"arn:aws:iam::{OURS}:user/alice", f"arn:aws:iam::{OURS}:user/bob"
ROLE, SESSION = f"arn:aws:iam::{OURS}:role/deploy", f"arn:aws:sts::{OURS}:assumed-role/deploy/night"
STRANGER = f"arn:aws:iam::{OTHERS}:user/alice"
KEY = f"arn:aws:kms:us-east-1:{OURS}:key/alice"  # as if named after its user, for variables in Resource
CALLERS = [
    Caller(ALICE, OURS, "AIDAALICE", "alice"),
    Caller(SESSION, OURS, "AROADEPLOY:night", role_arn=ROLE),
    Caller(f"arn:aws:iam::{OURS}:root", OURS, OURS),
    Caller(STRANGER, OTHERS, "AIDASTRANGER", "alice"),
]
PRINCIPALS = [ALICE, BOB, ROLE, SESSION, f"arn:aws:iam::{OURS}:root", OURS, OTHERS, STRANGER, "*"]
ACTIONS = ["kms:Decrypt", "kms:decrypt", "KMS:*", "*", "kms:De*", "kms:?ecrypt", "kms:Encrypt", "kms:GenerateDataKey*"]
RESOURCES = [
    "*", KEY, KEY.replace("alice", "bob"), f"arn:aws:kms:*:{OURS}:key/*", "arn:aws:kms:us-east-?:*:*", "arn:aws:kms:*",
    f"arn:aws:kms:us-east-1:{OURS}:key/${{aws:username}}", f"arn:aws:kms:us-east-1:{OURS}:*/${{aws:NoSuch, 'alice'}}",
    f"arn:aws:kms:us-east-1:{OURS}:key/${{kms:Set}}", f"arn:aws:kms:us-east-1:{OURS}:key/al${{?}}ce",
]  # fmt: skip
ZERO = "0" * 96
TEXTS = [
    "alice", "ALICE", "a*e", "a?ice", "*", "", "${aws:username}", "x${kms:Text}", "${kms:Gone, 'alice'}", "${*}", ZERO,
]  # fmt: skip
ARNS = [
    ALICE, BOB, f"arn:aws:iam::{OURS}:user/*", f"arn:*:iam::{OURS}:user/a?ice", f"arn:aws:iam::{OURS}:*",
    f"arn:aws:iam::{OURS}:user/${{aws:username}}", "arn:aws:iam::${aws:PrincipalAccount}:user/alice", "alice", "*",
]  # fmt: skip
DATES = ["2026-01-01T00:00:00Z", "2026-01-01", "1767225600", "1767225600.5", "2025-12-31T23:00:00-01:00"]
FAMILIES = {  # of operators: the values that a policy may have, and those that a request may
    "String": (TEXTS, ["alice", "ALICE", "xalice", "a*e", "*", "", "bob", "a\nce", ZERO]),
    "Numeric": (["10", "10.0", "-1", 3, 2.5, "1e1"], ["10", "9.99", "-1", "ten", "", "1e1"]),
    "Date": (DATES, [*DATES, "yesterday", ""]),
    "Bool": (["true", "False", True, "${kms:Text}"], ["true", "TRUE", "false", "1", ""]),
    "Binary": (["YQ==", "YWI="], ["YQ==", "YWI=", "a", ""]),
    "Ip": (["192.0.2.0/24", "192.0.2.7", "2001:db8::/32", "0.0.0.0/0"], ["192.0.2.7", "2001:db8::1", "::1", "home"]),
    "Arn": (ARNS, [ALICE, BOB, STRANGER, ROLE, "alice", f"{ALICE}:more"]),
    "Null": (["true", "false", True], ["anything"]),
}
REMEMBERED = Decisions()
PCR = "kms:RecipientAttestation:PCR0"
KEYS = [PCR, "kms:Text", "kms:Set", "aws:Gone", "kms:text"]


def family(operator: str) -> str:
    """Which values an operator compares."""
    return next(name for name in FAMILIES if name.lower() in operator.lower())


def some(values: list[Any]) -> st.SearchStrategy[Any]:
    """One value, or a list of a few."""
    return st.sampled_from(values) | st.lists(st.sampled_from(values), min_size=1, max_size=3)


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    """A Condition element with values that the operators can read."""
    found: dict[str, Any] = {}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([base.name for base in OPERATORS.values()]))
        values = draw(some(FAMILIES[family(name)][0]))
        if name != "Null":
            name += draw(st.sampled_from(["", "", "IfExists"]))
            name = draw(st.sampled_from(["", "", "ForAllValues:", "ForAnyValue:"])) + name
        found.setdefault(name, {})[draw(st.sampled_from(KEYS))] = values
    return found


@st.composite
def statements(draw: st.DrawFn, *, principal: bool) -> dict[str, Any]:
    """A statement; now and then without an element that makes it effective."""
    found: dict[str, Any] = {"Effect": draw(st.sampled_from(["Allow", "Allow", "Deny"]))}
    for name, values in (("Action", ACTIONS), ("Resource", RESOURCES)):
        form = draw(st.sampled_from([name, name, name, name, f"Not{name}", ""]))
        if form:
            found[form] = draw(some(values))
    if principal:
        form = draw(st.sampled_from(["Principal", "Principal", "Principal", "NotPrincipal"]))
        found[form] = draw(st.just("*") | st.builds(lambda who: {"AWS": who}, some(PRINCIPALS)))
    found["Condition"] = draw(conditions())
    return found


@st.composite
def policies(draw: st.DrawFn, *, principal: bool) -> dict[str, Any]:
    """A policy document."""
    version = draw(
        st.sampled_from([{"Version": "2012-10-17"}, {"Version": "2012-10-17"}, {"Version": "2008-10-17"}, {}])
    )
    inner = statements(principal=principal)
    return {**version, "Statement": draw(inner | st.lists(inner, min_size=1, max_size=3))}


@st.composite
def contexts(draw: st.DrawFn, names: list[str]) -> naive.Values:
    """Condition keys, each absent, single or multi-valued; the values are those of any family."""
    values = [value for _, actual in FAMILIES.values() for value in actual]
    found: naive.Values = {}
    for name in names:
        many = st.lists(st.sampled_from(values), max_size=3).map(tuple)
        value = draw(st.none() | st.sampled_from(values) | (many if name == "kms:Set" else st.sampled_from(values)))
        if value is not None:
            found[name] = value
    return found


def outcome(  # noqa: PLR0917 - one request, spelt out
    caller: Caller, action: str, key: str | None, context: naive.Values, hidden: naive.Values, policy: Any, others: Any
) -> tuple[bool, bool]:
    """What the engine says, and what the other evaluator says."""
    lower = {name.lower(): value for name, value in context.items()}
    access = Access(caller, action, key, lower, {name.lower(): value for name, value in hidden.items()})
    parsed = parse_policy(json.dumps(policy)) if key else None
    identities = [parse_policy(json.dumps(p), PolicyKind.IDENTITY) for p in others]
    decision = evaluate(access, parsed, identities)
    for _ in range(2):  # made, and then remembered, among all those of earlier cases
        assert REMEMBERED.decide(access, parsed, identities) == decision
    request = naive.Request(caller.arn, caller.account, caller.role_arn, action, key, context, hidden)
    return decision.allowed, naive.allowed(request, policy if key else None, others)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    """Everything that a decision depends on."""
    caller = draw(st.sampled_from(CALLERS))
    own = {"aws:PrincipalAccount": caller.account} | ({"aws:username": caller.name} if caller.name else {})
    return (
        caller,
        draw(st.sampled_from(["kms:Decrypt", "kms:Encrypt"])),
        draw(st.sampled_from([KEY, KEY, KEY, None])),
        {**own, **draw(contexts([PCR, "kms:Text", "kms:Set"]))},
        draw(contexts(["aws:Gone"])),
        draw(policies(principal=True)),
        draw(st.lists(policies(principal=False), max_size=2)),
    )


@given(cases())
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_both_evaluators_agree(case: tuple[Any, ...]) -> None:
    """Whatever the policies, the caller and the context: allowed by both or by none."""
    engine, other = outcome(*case)
    assert engine == other


@pytest.mark.slow
@given(cases())
@settings(max_examples=2000, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_both_evaluators_agree_on_many(case: tuple[Any, ...]) -> None:
    """The same for longer."""
    engine, other = outcome(*case)
    assert engine == other


@pytest.mark.parametrize("name", sorted(OPERATORS))
@pytest.mark.parametrize("quantifier", ["", "ForAllValues:", "ForAnyValue:"])
@pytest.mark.parametrize("suffix", ["", "IfExists"])
def test_every_operator_with_every_value(name: str, quantifier: str, suffix: str) -> None:
    """Each operator, form, policy value and request value (single, several, none, missing), in Allow and Deny."""
    base = OPERATORS[name].name
    if base == "Null" and (quantifier or suffix):
        return
    policy_values, actual = FAMILIES[family(base)]
    requests: list[Any] = [None, (), (actual[0],), tuple(actual[:2]), *actual]
    for effect in ("Allow", "Deny"):
        for value in [*policy_values, list(policy_values[:2])]:
            condition = {f"{quantifier}{base}{suffix}": {"kms:Text": value}}
            statement = {"Principal": "*", "Action": "*", "Resource": "*"}
            policy = {
                "Version": "2012-10-17",
                "Statement": [
                    {"Effect": effect, "Condition": condition, **statement},
                    *([{"Effect": "Allow", **statement}] if effect == "Deny" else []),
                ],
            }
            for item in requests:
                context = {"aws:username": "alice"} | ({"kms:Text": item} if item is not None else {})
                engine, other = outcome(CALLERS[0], "kms:Decrypt", KEY, context, {}, policy, [])
                assert engine == other, (condition, item)


def test_the_cases_decide_both_ways() -> None:
    """The generator gives requests that are allowed and requests that are not, so that agreeing means something."""
    seen = set()

    @given(cases())
    @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    def collect(case: tuple[Any, ...]) -> None:
        seen.add(outcome(*case)[0])

    collect()
    assert seen == {True, False}
