"""Policy documents and decisions: what is refused, who is meant, who wins, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from alcove.kms.errors import KmsError
from alcove.kms.policy.document import PolicyDocument, PolicyKind, parse_policy
from alcove.kms.policy.evaluate import Access, Decision, Why, evaluate
from alcove.kms.policy.explain import denial
from alcove.kms.policy.principals import Caller, Kind, Principal, Reach
from alcove.kms.policy.text import Value

ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555"
ALICE = Caller(f"arn:aws:iam::{ACCOUNT}:user/alice", ACCOUNT, "AIDAALICE", "alice")
SESSION = Caller(
    f"arn:aws:sts::{ACCOUNT}:assumed-role/app/one", ACCOUNT, "AROA:one", role_arn=f"arn:aws:iam::{ACCOUNT}:role/p/app"
)
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
PCR0 = "kms:RecipientAttestation:PCR0"
GOOD, BAD, ZERO = "aa" * 48, "bb" * 48, "00" * 48


def statement(**change: Any) -> dict[str, Any]:
    base = {"Effect": "Allow", "Principal": {"AWS": ALICE.arn}, "Action": "kms:Decrypt", "Resource": "*"}
    return {k: v for k, v in (base | change).items() if v is not None}


def policy(*statements: dict[str, Any], kind: PolicyKind = PolicyKind.KEY) -> PolicyDocument:
    return parse_policy(json.dumps({"Version": "2012-10-17", "Statement": list(statements)}), kind)


def identity(**change: Any) -> PolicyDocument:
    return policy(statement(Principal=None, **change), kind=PolicyKind.IDENTITY)


def access(caller: Caller = ALICE, action: str = "kms:Decrypt", **context: Value) -> Access:
    return Access(caller, action, KEY, context)


def decide(*statements: dict[str, Any], caller: Caller = ALICE, ident: list[PolicyDocument] | None = None) -> Decision:
    return evaluate(access(caller), policy(*statements), ident or [])


def attested(operator: str, value: str = GOOD, **change: Any) -> dict[str, Any]:
    return statement(Condition={operator: {PCR0: value}}, **change)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({}, True),
        ({"Action": "kms:*"}, True),
        ({"Action": "*"}, True),
        ({"Action": ["kms:Encrypt", "KMS:dec?ypt"]}, True),
        ({"Action": "kms:Encrypt"}, False),
        ({"Action": None, "NotAction": "kms:Encrypt"}, True),
        ({"Action": None, "NotAction": "kms:decrypt"}, False),
        ({"Action": None}, False),
        ({"Resource": None}, False),
        ({"Resource": KEY}, True),
        ({"Resource": "arn:aws:kms:*:*:key/*"}, True),
        ({"Resource": KEY[:-1] + "6"}, False),
        ({"Resource": "arn:aws:kms:us-east-1:111122223333:alias/x"}, False),
        ({"Resource": None, "NotResource": KEY}, False),
        ({"Principal": "*"}, True),
        ({"Principal": {"AWS": "*"}}, True),
        ({"Principal": {"AWS": [ROOT, ALICE.arn]}}, True),
        ({"Principal": {"AWS": ALICE.arn.replace("alice", "Alice")}}, False),
        ({"Principal": {"AWS": ROOT}}, False),
        ({"Principal": {"Service": "x.amazonaws.com"}}, False),
        ({"Principal": None, "NotPrincipal": {"AWS": ALICE.arn}}, False),
        ({"Principal": None, "NotPrincipal": {"AWS": ALICE.arn + "2"}}, True),
    ],
)
def test_a_statement_applies_to_whom_and_what_it_names(change: dict[str, Any], *, allowed: bool) -> None:
    """Principals, actions and resources with their Not forms (kms.md §8.3 to §8.5)."""
    assert decide(statement(**change)).allowed is allowed


def test_the_account_only_delegates() -> None:
    """A root statement needs an identity policy beside it, for whole accounts and bare account ids."""
    for name in (ROOT, ACCOUNT):
        delegating = statement(Principal={"AWS": name})
        decision = decide(delegating)
        assert (decision.allowed, decision.why) == (False, Why.IDENTITY_SILENT)
        assert decide(delegating, ident=[identity()]).why is Why.IDENTITY_ALLOWS
    root = Caller(ROOT, ACCOUNT, ACCOUNT)
    assert decide(statement(Principal={"AWS": ROOT}), caller=root).allowed


def test_without_the_account_identity_policies_allow_nothing() -> None:
    """An administrator is locked out of a key whose policy does not name the account; a Deny still works."""
    other = statement(Principal={"AWS": ALICE.arn + "2"})
    assert decide(other, ident=[identity()]).why is Why.KEY_POLICY_SILENT
    assert decide(statement(), ident=[identity(Effect="Deny")]).why is Why.IDENTITY_DENIES


def test_an_explicit_deny_beats_everything() -> None:
    """Order does not matter, and neither does who allows."""
    deny = statement(Effect="Deny", Principal="*")
    assert decide(statement(), deny, ident=[identity()]).why is Why.KEY_POLICY_DENIES
    assert decide(deny, statement(), ident=[identity()]).why is Why.KEY_POLICY_DENIES


def test_a_role_covers_its_sessions_and_a_session_only_itself() -> None:
    """Role ARNs have a path and session ARNs have none (kms.md §8.3)."""
    assert decide(statement(Principal={"AWS": SESSION.role_arn}), caller=SESSION).allowed
    assert decide(statement(Principal={"AWS": SESSION.arn}), caller=SESSION).allowed
    assert not decide(statement(Principal={"AWS": SESSION.arn + "2"}), caller=SESSION).allowed
    assert Principal(Kind.ACCOUNT, ACCOUNT).reaches(SESSION) is Reach.ACCOUNT


def test_another_account_needs_both_sides() -> None:
    """Across accounts a key policy alone is not enough (kms.md §8.1)."""
    bob = Caller("arn:aws:iam::999999999999:user/bob", "999999999999", "AIDABOB", "bob")
    both = statement(Principal={"AWS": bob.arn})
    assert not decide(both, caller=bob).allowed
    assert decide(both, caller=bob, ident=[identity()]).allowed
    assert not decide(statement(), caller=bob, ident=[identity()]).allowed


def test_without_a_key_an_identity_policy_decides() -> None:
    """GenerateRandom and its kin have no key policy."""
    nothing = Access(ALICE, "kms:GenerateRandom", None, {})
    assert not evaluate(nothing, None, []).allowed
    assert evaluate(nothing, None, [identity(Action="kms:*")]).allowed
    conditional = identity(Action="kms:*", Condition={"StringEquals": {PCR0: GOOD}})
    assert not evaluate(nothing, None, [conditional]).allowed


@pytest.mark.parametrize(
    ("statements", "actual", "words"),
    [
        ([attested("StringEqualsIgnoreCase")], None, f"(no attestation document was given, so there is no {PCR0})"),
        ([attested("StringEquals")], BAD, f"({PCR0} is {BAD} and the key policy requires {GOOD})"),
        ([attested("StringEquals")], ZERO, f"({PCR0} is zero: the enclave runs in debug mode; the key policy requires"),
        ([attested("StringNotEquals")], GOOD, f"({PCR0} is {GOOD} and the key policy excludes {GOOD})"),
        (
            [statement(), attested("StringNotEquals", Effect="Deny", Principal="*")],
            BAD,
            f"with an explicit deny in a resource-based policy ({PCR0} is {BAD} and the key policy requires {GOOD})",
        ),
        (
            [statement(), attested("StringNotEquals", Effect="Deny")],
            None,
            f"an explicit deny in a resource-based policy (no attestation document was given, so there is no {PCR0})",
        ),
        ([statement(Action="kms:Encrypt")], GOOD, "because no resource-based policy allows the kms:Decrypt action"),
        ([statement(Principal={"AWS": ROOT})], GOOD, "because no identity-based policy allows the kms:Decrypt action"),
        (
            [statement(Sid="In hours", Condition={"StringEquals": {"aws:SourceIp": "192.0.2.1"}})],
            GOOD,
            "(the condition StringEquals on aws:SourceIp of In hours is not met)",
        ),
    ],
)
def test_a_denial_says_which_condition_failed(statements: list[dict[str, Any]], actual: str | None, words: str) -> None:
    """AWS's sentence first, then the key, what it is and what the policy wants."""
    asked = Access(ALICE, "kms:Decrypt", KEY, {PCR0.lower(): actual} if actual else {})
    decision = evaluate(asked, policy(*statements), [])
    text = denial(asked, decision, attested=actual is not None)
    assert not decision.allowed
    assert text.startswith(f"User: {ALICE.arn} is not authorized to perform: kms:Decrypt on resource: {KEY} ")
    assert words in text


def test_an_attested_statement_explains_itself_beside_a_root_statement() -> None:
    """The usual enclave policy: the parent without identity rights learns that the document is missing."""
    decision = decide(statement(Principal={"AWS": ROOT}, Action="kms:*"), attested("StringEquals"))
    assert decision.why is Why.KEY_POLICY_SILENT
    assert decision.failures[0].actual is None
    assert decision.failures[0].expected == (GOOD,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "{}",
        "[" * 3000,
        '{"Statement":[]}',
        '{"Statement":[],"Statement":[]}',
        json.dumps({"Version": "2020-01-01", "Statement": statement()}),
        json.dumps({"Version": ["2012-10-17"], "Statement": statement()}),
        json.dumps({"Statement": statement(Condition={"StringEquals": {PCR0: float("nan")}})}),
        json.dumps({"Statement": statement(), "Extra": 1}),
        json.dumps({"Statement": statement(Effect="allow")}),
        json.dumps({"Statement": statement(Extra=1)}),
        json.dumps({"Statement": statement(Principal=None)}),
        json.dumps({"Statement": statement(NotPrincipal="*")}),
        json.dumps({"Statement": statement(Principal={"AWS": []})}),
        json.dumps({"Statement": statement(Principal={})}),
        json.dumps({"Statement": statement(Principal={"AWS": "arn:aws:iam::111122223333:user/*"})}),
        json.dumps({"Statement": statement(Principal={"AWS": "alice"})}),
        json.dumps({"Statement": statement(Principal={"CanonicalUser": "x"})}),
        json.dumps({"Statement": statement(Principal={"AWS": f"{ACCOUNT}:root"})}),
        json.dumps({"Statement": statement(NotAction="kms:Encrypt")}),
        json.dumps({"Statement": statement(NotResource="*")}),
        json.dumps({"Statement": statement(Action=[1])}),
        json.dumps({"Statement": statement(Condition=[])}),
        json.dumps({"Statement": statement(Condition={"StringEquals": "x"})}),
        json.dumps({"Statement": statement(Condition={"StringEquals": {PCR0: {"a": 1}}})}),
        json.dumps({"Statement": statement(Condition={"StringEquals": {PCR0: []}})}),
        json.dumps({"Statement": statement(Condition={"StringIs": {PCR0: GOOD}})}),
        json.dumps({"Statement": statement(Condition={"ForAllValues:StringEquals": {"kms:EncryptionContext:a": "b"}})}),
    ],
)
def test_a_policy_that_is_none_is_refused(text: str) -> None:
    """Every row of kms.md §8.6 is a MalformedPolicyDocumentException."""
    with pytest.raises(KmsError) as caught:
        parse_policy(text)
    assert caught.value.kind == "MalformedPolicyDocumentException"


def altered(value: Any) -> Iterator[Any]:
    """A JSON value with each of its parts, and itself, replaced by values of every type."""
    yield from (None, 1, 1.5, True, "", "x", [], {}, [[]], [{}], [None], {"x": []}, {"": None})
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from ({**value, name: other} for other in altered(inner))
            yield {k: v for k, v in value.items() if k != name}
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in altered(inner))


def test_every_wrong_type_is_refused_or_read() -> None:
    """Whatever stands in the place of any part of a policy: it decides, or is refused as every bad policy is."""
    condition = {"StringLike": {"aws:username": ["a", "${aws:username}"]}, "Null": {PCR0: "true"}}
    whole = {"Version": "2012-10-17", "Id": "x", "Statement": [statement(Sid="s", Condition=condition)]}
    refused = read = 0
    for value in altered(whole):
        try:
            parsed = parse_policy(json.dumps(value))
        except KmsError as error:
            assert error.kind == "MalformedPolicyDocumentException"  # noqa: PT017 - or it is read
            refused += 1
        else:
            evaluate(access(), parsed, [])
            read += 1
    assert refused > read > 0


def test_a_policy_has_a_size() -> None:
    """32,768 bytes and no more."""
    with pytest.raises(KmsError) as caught:
        parse_policy(json.dumps({"Statement": statement(Sid="x" * 33_000)}))
    assert caught.value.kind == "LimitExceededException"


def test_variables_need_the_newer_version() -> None:
    """In a policy of 2008 a variable is literal text (kms.md §7.3)."""
    given = {"Statement": statement(Condition={"StringEquals": {"aws:username": "${aws:username}"}})}
    asked = access(**{"aws:username": "alice"})
    assert not evaluate(asked, parse_policy(json.dumps(given)), []).allowed
    assert evaluate(asked, parse_policy(json.dumps(given | {"Version": "2012-10-17"})), []).allowed
