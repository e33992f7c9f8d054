"""What is legal in a policy and probably not meant (kms.md §6.3, §8.9).

Core: a policy's text in; findings out.

The question behind most of them: who could obtain plaintext without an attestation document? Whether a condition
admits a call without one is not argued from its operator's name: it is evaluated, against a request that has no
condition keys at all.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alcove.kms.errors import KmsError
from alcove.kms.policy import lint_conditions
from alcove.kms.policy.catalogue import ATTESTED, CALLER, RELEASING, is_attestation, is_measured
from alcove.kms.policy.conditions import OPERATORS
from alcove.kms.policy.document import PolicyDocument, PolicyKind, Statement, parse_policy
from alcove.kms.policy.principals import Kind
from alcove.kms.policy.text import like

_UNKNOWN_OPERATOR = re.compile(r"unknown condition operator '([^']*)'")


@dataclass(frozen=True, slots=True)
class Finding:
    """One warning: a code for programs, a sentence for people, and the statement it is about."""

    code: str
    message: str
    where: str = "the policy"

    def to_json(self) -> dict[str, str]:
        """The object that the command prints."""
        return {"Code": self.code, "Message": self.message, "Where": self.where}


def lint(text: str, actions: Sequence[str], kind: PolicyKind = PolicyKind.KEY) -> list[Finding]:
    """Everything suspicious in a policy.

    Args:
        text: The policy, in JSON.
        actions: Every action of the service, without ``kms:``.
        kind: Where it hangs. An identity policy has no principals, and nobody is locked out by it.
    """
    try:
        policy = parse_policy(text, kind)
    except KmsError as error:
        return [Finding("malformed", f"{error.message}{_meant(error.message)}")]
    found = [finding for statement in policy.statements for finding in _statement(statement, policy, actions)]
    if not policy.variables and "${" in text:
        found.append(Finding("no-variables", "policy variables are read only with Version 2012-10-17"))
    if kind is PolicyKind.KEY:
        found += _side_doors(policy)
        if not administrators(policy):
            found.append(Finding("lockout", "nobody may call kms:PutKeyPolicy: this policy could never be changed"))
    return found


def administrators(policy: PolicyDocument) -> list[str]:
    """Whom a key policy lets replace it."""
    statements = [s for s in policy.statements if allows(s, "PutKeyPolicy") and not _attested(s)]
    if _denied(policy, "PutKeyPolicy"):
        return []
    return sorted({("everyone but " if s.not_principal else "") + p.value for s in statements for p in s.principals})


def allows(statement: Statement, action: str) -> bool:
    """Whether an Allow statement covers an action."""
    return statement.allow and covers(statement, action)


def covers(statement: Statement, action: str) -> bool:
    """Whether the actions of a statement, which has its resources, are about an action."""
    values = statement.actions.values
    if values is None or statement.resources.values is None:
        return False
    return any(_is_action(value, action) for value in values) != statement.actions.negated


def _statement(statement: Statement, policy: PolicyDocument, actions: Sequence[str]) -> Iterator[Finding]:
    where = statement.label
    released = [a for a in RELEASING if allows(statement, a) and not guarded(policy, a)]
    if released and not _attested(statement):
        yield Finding("no-attestation", f"{_listed(released)} without an attestation document{_via(statement)}", where)
    elif released and not _pinned(statement):
        yield Finding("any-enclave", f"{_listed(released)} from every enclave, whatever its image", where)
    for code, message in lint_conditions.of(statement, releasing=bool(released)):
        yield Finding(code, message, where)
    yield from _elements(statement, policy, actions)


def _elements(statement: Statement, policy: PolicyDocument, actions: Sequence[str]) -> Iterator[Finding]:
    where, names = statement.label, statement.actions.values
    if names is None or statement.resources.values is None:
        missing = "Action" if names is None else "Resource"
        yield Finding("no-effect", f"without {missing} the statement does nothing", where)
    for value in names or ():
        if not any(_is_action(value, action) for action in actions):
            yield Finding("unknown-action", f"{value} is no action of the service", where)
    for value in statement.resources.values or ():
        if policy.kind is PolicyKind.KEY and ":alias/" in value:
            yield Finding("alias-resource", f"{value}: the ARN of an alias never matches a key", where)
    for principal in statement.principals:
        if principal.kind is Kind.GONE:
            yield Finding("gone-principal", f"{principal.value} is a user or role that was removed", where)
    if statement.allow and statement.not_principal:
        yield Finding("not-principal", "Allow with NotPrincipal opens the key to everyone else", where)
    if statement.allow and _anyone(statement) and not _attested(statement) and not _names_caller(statement):
        yield Finding("any-principal", "the statement is about every caller", where)
    if statement.allow and any(is_attestation(c.key) for c in statement.conditions):
        never = [n for n in names or () if "*" not in n and not any(_is_action(n, a) for a in ATTESTED)]
        if never and not statement.actions.negated:
            yield Finding("never-attested", f"{_listed(never)}: no attestation document goes with it", where)


def _side_doors(policy: PolicyDocument) -> Iterator[Finding]:
    """What undoes attestation without asking for plaintext (§8.9, 3 and 4)."""
    open_now = [action for action in RELEASING if not guarded(policy, action)]
    for statement in policy.statements:
        if allows(statement, "ReEncryptFrom") and not _denied(policy, "ReEncryptFrom"):
            message = "kms:ReEncryptFrom takes no attestation document: it moves ciphertext to another key"
            yield Finding("reencrypt", message, statement.label)
        if open_now and allows(statement, "CreateGrant") and not _denied(policy, "CreateGrant"):
            message = f"a grant has no attestation condition: kms:CreateGrant can give away {_listed(open_now)}"
            yield Finding("grant", message, statement.label)


def guarded(policy: PolicyDocument, action: str) -> bool:
    """Whether some Deny stops everybody who calls this action without an attestation document."""
    return any(
        not s.allow
        and covers(s, action)
        and _anyone(s)
        and "*" in (s.resources.values or ())
        and not s.resources.negated
        and all(is_attestation(c.key) and c.holds({}, variables=False) for c in s.conditions)
        for s in policy.statements
    )


_denied = guarded  # actions that take no document: whatever is denied without one is denied


def _attested(statement: Statement) -> bool:
    """Whether some condition fails without a document."""
    return any(is_attestation(c.key) and not c.holds({}, variables=False) for c in statement.conditions)


def _pinned(statement: Statement) -> bool:
    """Whether some condition that fails without a document also names values that an image or its signer has."""
    return any(
        is_measured(c.key)
        and not c.holds({}, variables=False)
        and c.base.name != "Null"
        and not any(value.strip("*?") == "" for value in c.values)
        for c in statement.conditions
    )


def _is_action(pattern: str, action: str) -> bool:
    return like(pattern.lower(), f"kms:{action}".lower())


def _anyone(statement: Statement) -> bool:
    return not statement.not_principal and any(p.kind is Kind.ANYONE for p in statement.principals)


def _names_caller(statement: Statement) -> bool:
    return any(c.key.lower() in CALLER or c.key.lower().startswith("aws:principaltag/") for c in statement.conditions)


def _via(statement: Statement) -> str:
    account = any(p.kind is Kind.ACCOUNT for p in statement.principals) and not statement.not_principal
    return ", for whom the account's identity policies allow it" if account else ""


def _meant(message: str) -> str:
    """For an operator that does not exist, the one that was meant, perhaps."""
    match = _UNKNOWN_OPERATOR.search(message)
    if match is None:
        return ""
    name = match[1].rpartition(":")[2].lower().removesuffix("ifexists")
    close = difflib.get_close_matches(name, OPERATORS, n=1)
    return f"; is it {OPERATORS[close[0]].name}?" if close else ""


def _listed(names: Sequence[str]) -> str:
    full = [name if name.startswith("kms:") else f"kms:{name}" for name in names]
    return full[0] if len(full) == 1 else f"{', '.join(full[:-1])} and {full[-1]}"
