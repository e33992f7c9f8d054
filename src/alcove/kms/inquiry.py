"""Why a request would be allowed or refused, without making it.

Core: the tools and a question in; the decision and every statement that was looked at out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from alcove.errors import UsageError
from alcove.kms.authorize import authorize
from alcove.kms.call import Call, Identity, Peer, Tools
from alcove.kms.keys import Key
from alcove.kms.policy.document import PolicyDocument, PolicyKind, parse_policy
from alcove.kms.policy.evaluate import Access, Decision, Why, evaluate
from alcove.kms.policy.explain import denial
from alcove.kms.policy.principals import Caller, Kind, parse_principals
from alcove.kms.policy.text import Value
from alcove.kms.policy.walk import Step, walk
from alcove.kms.resolve import Source, resolve

_DENIES = (Why.KEY_POLICY_DENIES, Why.IDENTITY_DENIES)


@dataclass(frozen=True, slots=True)
class Question:
    """A request that nobody makes.

    Attributes:
        identity: Who would make it.
        action: Such as ``Decrypt``, without ``kms:``.
        key: A key id, an ARN or an alias; None for operations without a key.
        params: The parameters that policies see, as the API has them.
        context: Condition keys in lower case that the request would have beside its own.
        attested: Whether it would come with an attestation document.
    """

    identity: Identity
    action: str
    key: str | None
    now: datetime
    params: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Value] = field(default_factory=dict)
    attested: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """The decision in a sentence, and the steps to it."""

    access: Access
    decision: Decision
    sentence: str
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, object]:
        """The object that the command prints."""
        return {
            "Allowed": self.decision.allowed,
            "Why": self.decision.why.value,
            "Statement": self.decision.statement,
            "Message": self.sentence,
            "Principal": self.access.caller.arn,
            "Action": self.access.action,
            "Resource": self.access.key_arn,
            "Steps": [step.to_json() for step in self.steps],
        }


def inquire(tools: Tools, question: Question) -> Findings:
    """The answer to a question.

    Raises:
        KmsError: There is no such key.
    """
    named = {"KeyId": question.key} if question.key else {}
    peer = Peer("127.0.0.1", "", secure=False)
    call = Call(question.action, {**question.params, **named}, question.identity, peer, question.now)
    call = resolve(Source.ANY_NAME if question.key else Source.NONE, tools, call)
    call = replace(call, other=call.key if question.action.startswith("ReEncrypt") else None)
    access, decision = authorize(tools, call)
    policy = parse_policy(call.key.policy) if call.key else None
    if question.context:
        access = access._replace(context={**access.context, **question.context})
        again = evaluate(access, policy, question.identity.policies)
        granted = decision.why is Why.GRANT_ALLOWS and again.why not in _DENIES
        decision = decision if granted else again
    named_policies = [("key policy", policy)] if policy else []
    named_policies += [(f"identity policy {n}", p) for n, p in enumerate(question.identity.policies, 1)]
    return Findings(access, decision, _sentence(access, decision, question), tuple(walk(access, named_policies)))


def key_of(tools: Tools, name: str, now: datetime) -> Key:
    """The key that an id, an ARN or an alias names.

    Raises:
        KmsError: There is no such key.
    """
    nobody = Identity(Caller(tools.realm.root_arn, tools.realm.account, tools.realm.account), "", ())
    call = Call("DescribeKey", {"KeyId": name}, nobody, Peer("", "", secure=False), now)
    return resolve(Source.ANY_NAME, tools, call).the_key


def caller_of(tools: Tools, arn: str) -> Identity:
    """Who an ARN names, with the identity policies that it has here.

    Raises:
        UsageError: It is not the ARN of a user, a role, a session of one or an account; or there is no such thing here.
    """
    try:
        principal = parse_principals({"AWS": arn})[0]
    except ValueError:
        principal = None
    if principal is None or principal.kind is Kind.GONE:
        raise UsageError(f"`{arn}` is not the ARN of a principal")
    realm = tools.realm
    if principal.kind is Kind.ACCOUNT:
        return Identity(
            Caller(f"arn:{realm.partition}:iam::{principal.value}:root", principal.value, principal.value), "", ()
        )
    account, name = arn.split(":")[4], arn.partition("/")[2]
    if account != realm.account:
        return Identity(Caller(arn, account, "", name), "", ())
    if principal.kind is Kind.USER:
        return _user(tools, name)
    role, _, session = name.partition("/") if principal.kind is Kind.SESSION else (name, "", "session")
    return _role(tools, role, session)


def _user(tools: Tools, name: str) -> Identity:
    user = next((u for u in tools.store.users() if u.name == name), None)
    if user is None:
        raise UsageError(f"there is no user {name}", hint="`alcove kms user list` shows who there is")
    caller = Caller(tools.realm.user_arn(name), tools.realm.account, user.user_id, name)
    return Identity(caller, "", _parsed(user.policies))


def _role(tools: Tools, name: str, session: str) -> Identity:
    role = next((r for r in tools.store.roles() if r.name == name), None)
    if role is None:
        raise UsageError(f"there is no role {name}", hint="`alcove kms role list` shows what there is")
    realm = tools.realm
    arn, user_id = realm.session_arn(name, session), f"{role.role_id}:{session}"
    return Identity(Caller(arn, realm.account, user_id, role_arn=realm.role_arn(name)), "", _parsed(role.policies))


def _parsed(policies: tuple[str, ...]) -> tuple[PolicyDocument, ...]:
    return tuple(parse_policy(text, PolicyKind.IDENTITY) for text in policies)


def _sentence(access: Access, decision: Decision, question: Question) -> str:
    if not decision.allowed:
        return denial(access, decision, attested=question.attested)
    by = f" ({decision.statement})" if decision.statement else ""
    where = access.key_arn or "*"
    return f"{access.caller.arn} may perform {access.action} on {where}: {decision.why.value} it{by}"
