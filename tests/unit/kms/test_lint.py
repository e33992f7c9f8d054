"""Lints of policies: each trap has its code, and the safe shape has none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alcove.kms.model import kms_model
from alcove.kms.policy import pin
from alcove.kms.policy.document import PolicyKind, parse_policy
from alcove.kms.policy.lint import administrators, lint

ROOT = "arn:aws:iam::111122223333:root"
APP = "arn:aws:iam::111122223333:user/app"
PCR0 = "kms:RecipientAttestation:PCR0"
IMAGE = "kms:RecipientAttestation:ImageSha384"
GOOD = "ab" * 48
OTHER = "cd" * 48
ACTIONS = sorted(kms_model().operations - {"ReEncrypt"} | {"ReEncryptFrom", "ReEncryptTo"})
MANAGE = {
    "Sid": "manage",
    "Effect": "Allow",
    "Principal": {"AWS": ROOT},
    "Action": ["kms:PutKeyPolicy", "kms:DescribeKey"],
    "Resource": "*",
}


def allow(condition: dict[str, Any] | None = None, **change: Any) -> dict[str, Any]:
    """A statement that lets an application decrypt."""
    made = {"Sid": "use", "Effect": "Allow", "Principal": {"AWS": APP}, "Action": "kms:Decrypt", "Resource": "*"}
    made |= change
    return made | ({"Condition": condition} if condition else {})


def deny(condition: dict[str, Any], **change: Any) -> dict[str, Any]:
    """A statement that stops everyone who meets the condition."""
    return allow(condition, Sid="stop", Effect="Deny", Principal="*") | change


def codes(*statements: dict[str, Any], manage: bool = True) -> set[str]:
    """The codes for a policy of these statements, and of one that manages the key."""
    whole = [MANAGE, *statements] if manage else list(statements)
    found = lint(json.dumps({"Version": "2012-10-17", "Statement": whole}), ACTIONS)
    assert all(finding.message and finding.where for finding in found)
    return {finding.code for finding in found}


def test_an_attested_statement_is_clean() -> None:
    """PCR0 in a positive condition, with administrators who cannot decrypt."""
    assert codes(allow({"StringEqualsIgnoreCase": {PCR0: GOOD}})) == set()


@pytest.mark.parametrize("signer", [True, False])
@pytest.mark.parametrize("image", [True, False])
def test_the_policy_that_pins_an_image_is_clean(*, signer: bool, image: bool) -> None:
    """What `alcove kms policy for` writes has no warning."""
    pcrs = {8: bytes(range(48))} if signer else {index: bytes([index + 1]) * 48 for index in range(3)}
    made = pin.policy(pin.conditions(pcrs, image=image and not signer), [APP], [ROOT])
    assert lint(json.dumps(made), ACTIONS) == []


def test_the_default_policy_is_open() -> None:
    """The account's statement lets identities decrypt, move and give away, all outside of an enclave."""
    statement = allow(Principal={"AWS": ROOT}, Action="kms:*")
    assert codes(statement, manage=False) == {"no-attestation", "reencrypt", "grant"}


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ({"StringEqualsIfExists": {PCR0: GOOD}}, "if-exists-trap"),
        ({"StringEqualsIgnoreCaseIfExists": {IMAGE: GOOD}}, "if-exists-trap"),
        ({"StringNotEquals": {PCR0: GOOD}}, "negated-trap"),
        ({"ForAllValues:StringEquals": {PCR0: GOOD}}, "for-all-trap"),
        ({"Null": {PCR0: "true"}}, "null-trap"),
    ],
)
def test_conditions_that_admit_calls_without_a_document(condition: dict[str, Any], code: str) -> None:
    """Each form that a call without a document meets is named, and so is what it lets out."""
    assert codes(allow(condition)) == {code, "no-attestation"}


def test_a_second_condition_closes_the_trap() -> None:
    """All conditions must hold, so one that fails without a document is enough; the trap is named all the same."""
    both = {"StringEqualsIfExists": {PCR0: GOOD}, "StringEquals": {"kms:RecipientAttestation:PCR8": GOOD}}
    assert codes(allow(both)) == {"if-exists-trap"}


@pytest.mark.parametrize(
    "condition",
    [
        {"Null": {PCR0: "false"}},
        {"StringLike": {PCR0: "*"}},
        {"StringEquals": {"kms:RecipientAttestation:PCR3": GOOD}},  # the parent's role: it is the same in debug mode
    ],
)
def test_any_enclave_is_not_an_image(condition: dict[str, Any]) -> None:
    """A document of any image at all is not much of a proof."""
    assert "any-enclave" in codes(allow(condition))


def test_a_deny_for_everyone_closes_an_open_allow() -> None:
    """A Deny that unattested calls meet makes up for an Allow without conditions, grants included."""
    guard = deny({"StringNotEqualsIgnoreCase": {PCR0: GOOD}})
    assert codes(allow(), guard) == set()
    assert "no-attestation" in codes(allow(), guard | {"Principal": {"AWS": APP}})
    assert "no-attestation" in codes(allow(), guard | {"Resource": "arn:aws:kms:*:*:key/none"})
    narrowed = {"StringNotEquals": {PCR0: GOOD, "aws:PrincipalArn": APP}}
    assert "no-attestation" in codes(allow(), deny(narrowed))


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ({"StringEquals": {PCR0: GOOD}}, "deny-misses"),
        ({"ForAnyValue:StringNotEquals": {PCR0: GOOD}}, "deny-misses"),
        ({"Null": {PCR0: "false"}}, "deny-misses"),
        ({"StringNotEquals": {PCR0: GOOD, "kms:RecipientAttestation:PCR1": GOOD}}, "deny-all-differ"),
    ],
)
def test_denies_that_do_less_than_they_say(condition: dict[str, Any], code: str) -> None:
    """A Deny that calls without a document pass, and one that needs every PCR to differ."""
    assert code in codes(allow({"StringEquals": {PCR0: GOOD}}), deny(condition))


def test_a_deny_with_null_is_sound() -> None:
    """Null true in a Deny stops calls without a document."""
    assert codes(allow({"StringEquals": {PCR0: GOOD}}), deny({"Null": {PCR0: "true"}})) == set()


@pytest.mark.parametrize(
    ("operator", "value", "code"),
    [
        ("StringEquals", "0" * 96, "zero-pcr"),
        ("StringEquals", "0x" + GOOD, "pcr-prefix"),
        ("StringEquals", GOOD[:64], "pcr-length"),
        ("StringEquals", GOOD.upper(), "pcr-case"),
        ("StringEquals", "g" * 96, "pcr-form"),
        ("StringEquals", "abc*", "pcr-form"),
        ("ArnEquals", GOOD, "pcr-operator"),
    ],
)
def test_values_that_no_document_has(operator: str, value: str, code: str) -> None:
    """Zeros, 0x, a wrong length, upper case where case counts, and text that is no digest."""
    assert codes(allow({operator: {PCR0: value}})) == {code}


def test_upper_case_is_fine_where_case_does_not_count() -> None:
    """StringEqualsIgnoreCase takes either."""
    assert codes(allow({"StringEqualsIgnoreCase": {PCR0: GOOD.upper()}})) == set()


def test_image_and_pcr0_are_one() -> None:
    """A statement that wants them to differ can never hold; the same value twice is fine."""
    assert codes(allow({"StringEquals": {PCR0: GOOD, IMAGE: OTHER}})) == {"image-mismatch"}
    assert codes(allow({"StringEquals": {PCR0: [GOOD, OTHER], IMAGE: OTHER.upper()}})) == {"pcr-case"}


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("kms:RecipientAttestation:PCR32", "unknown-key"),
        ("kms:RecipientAttestation:PCR01", "unknown-key"),
        ("kms:RecipientAttestion:PCR0", "unknown-key"),
        ("kms:EncryptionContext:", "unknown-key"),
        ("aws:SourceVpce", "absent-key"),
    ],
)
def test_condition_keys_that_no_request_has(key: str, code: str) -> None:
    """Misspelt ones, registers that are not there, and AWS's that have no meaning here."""
    assert code in codes(allow({"StringEquals": {PCR0: GOOD, key: GOOD}}))


@pytest.mark.parametrize("key", ["KMS:encryptioncontext:app", "aws:principalARN", "kms:recipientattestation:pcr31"])
def test_condition_keys_are_compared_without_case(key: str) -> None:
    """Their spelling is free, so no spelling is warned of."""
    assert codes(allow({"StringEquals": {PCR0: GOOD, key: GOOD}})) == set()


def test_a_misspelt_key_is_told_what_was_meant() -> None:
    """The closest one that there is."""
    text = json.dumps({"Statement": allow({"StringEquals": {"kms:EncryptionContex:app": "x"}})})
    messages = [finding.message for finding in lint(text, ACTIONS) if finding.code == "unknown-key"]
    assert messages == ["kms:EncryptionContex:app is no condition key; is it kms:EncryptionContext:?"]


def test_a_policy_that_would_be_refused_says_why() -> None:
    """An unknown operator is what PutKeyPolicy refuses, and the one that was meant is named."""
    found = lint(json.dumps({"Statement": allow({"StringEqual": {PCR0: GOOD}})}), ACTIONS)
    assert [finding.code for finding in found] == ["malformed"]
    assert "statement 1: unknown condition operator 'StringEqual'; is it StringEquals?" in found[0].message
    assert [finding.code for finding in lint("{", ACTIONS)] == ["malformed"]


def test_principals_that_are_everyone() -> None:
    """Star and NotPrincipal; an attested statement may be about everyone, for the image is the proof."""
    assert codes(allow(Principal="*", Action="kms:Encrypt")) == {"any-principal"}
    assert codes(allow({"StringEquals": {"kms:CallerAccount": "1"}}, Principal="*", Action="kms:Encrypt")) == set()
    assert codes(allow({"StringEquals": {PCR0: GOOD}}, Principal="*")) == set()
    other = allow(Action="kms:Encrypt") | {"NotPrincipal": {"AWS": APP}}
    del other["Principal"]
    assert codes(other) == {"not-principal"}


def test_a_policy_that_nobody_can_change() -> None:
    """No PutKeyPolicy, one only for the attested, or one that a Deny takes from everyone."""
    use = allow({"StringEquals": {PCR0: GOOD}})
    assert codes(use, manage=False) == {"lockout"}
    attested = use | {"Action": ["kms:Decrypt", "kms:PutKeyPolicy"]}
    assert codes(attested, manage=False) == {"lockout", "never-attested"}
    stop = {"Effect": "Deny", "Principal": "*", "Action": "kms:Put*", "Resource": "*"}
    assert codes(use, stop) == {"lockout"}


def test_administrators_are_listed() -> None:
    """Whoever may replace the policy, which is as good as having the plaintext."""
    policy = parse_policy(json.dumps({"Statement": [MANAGE, allow(Action="kms:*")]}))
    assert administrators(policy) == ["111122223333", APP]


def test_side_doors() -> None:
    """ReEncryptFrom moves ciphertext to a key without conditions, and a grant has none; a Deny closes each."""
    attested = {"StringEquals": {PCR0: GOOD}}
    assert codes(allow(attested), allow(Action="kms:ReEncrypt*")) == {"reencrypt"}
    assert codes(allow(attested), allow(Action="kms:CreateGrant")) == {"grant"}
    actions = ["kms:Decrypt", "kms:GenerateDataKey*", "kms:DeriveSharedSecret", "kms:ReEncryptFrom"]
    guard = deny({"StringNotEquals": {PCR0: GOOD}}, Action=actions)
    doors = allow(Action=["kms:CreateGrant", "kms:ReEncryptFrom"])
    assert codes(allow(attested), doors, guard) == set()


def test_statements_that_do_nothing() -> None:
    """A missing element, an action that is none, an alias as the resource, a document where none goes."""
    silent = allow()
    del silent["Action"]
    assert codes(silent) == {"no-effect"}
    assert codes(allow(Action="kms:Decript")) == {"unknown-action"}
    assert codes(allow(Action="s3:GetObject")) == {"unknown-action"}
    arn = "arn:aws:kms:us-east-1:111122223333:alias/app"
    assert "alias-resource" in codes(allow({"StringEquals": {PCR0: GOOD}}, Resource=arn))
    assert codes(allow({"StringEquals": {PCR0: GOOD}}, Action="kms:Sign")) == {"never-attested"}


def test_variables_need_the_newer_version() -> None:
    """Without it, ${…} is plain text."""
    statement = allow({"StringEquals": {PCR0: GOOD, "kms:EncryptionContext:user": "${aws:username}"}})
    old = {"Version": "2008-10-17", "Statement": [MANAGE, statement]}
    assert [finding.code for finding in lint(json.dumps(old), ACTIONS)] == ["no-variables"]


def test_identity_policies_have_no_administrators() -> None:
    """Nobody is locked out by the policy of a user."""
    text = json.dumps(
        {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "kms:Encrypt", "Resource": "*"}}
    )
    assert lint(text, ACTIONS, PolicyKind.IDENTITY) == []
