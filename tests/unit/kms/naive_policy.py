"""A second evaluator of policies, written from the specification alone (kms.md §6.3 to §8.5), to compare with.

It shares no code with the service. It reads JSON values as they are, at every request anew, says everything the long
way, and makes regular expressions of patterns. What it is given must be a policy that PutKeyPolicy accepts.
"""

from __future__ import annotations

import base64
import fnmatch
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

Json = Any
Values = dict[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Request:
    """A request: `context` has condition keys as they are spelt, `hidden` those that identity policies alone see."""

    caller_arn: str
    account: str
    role_arn: str | None
    action: str
    key_arn: str | None
    context: Values
    hidden: Values = field(default_factory=dict)


def allowed(request: Request, key_policy: Json | None, identity_policies: list[Json]) -> bool:
    """§8.1: deny, direct, acct, ident."""
    key_policies = [key_policy] if key_policy is not None else []
    everything = {**request.context, **request.hidden}

    def applying(policy: Json, effect: str, context: Values, reaches: tuple[str, ...]) -> bool:
        variables = policy.get("Version") == "2012-10-17"
        return any(
            statement["Effect"] == effect
            and reach(statement, request) in reaches
            and action_matches(statement, request)
            and resource_matches(statement, request, context if variables else None)
            and conditions_hold(statement, context, variables=variables)
            for statement in listed(policy["Statement"])
        )

    deny = any(applying(p, "Deny", request.context, ("direct", "account")) for p in key_policies)
    deny = deny or any(applying(p, "Deny", everything, ("identity",)) for p in identity_policies)
    direct = any(applying(p, "Allow", request.context, ("direct",)) for p in key_policies)
    acct = any(applying(p, "Allow", request.context, ("account",)) for p in key_policies)
    ident = any(applying(p, "Allow", everything, ("identity",)) for p in identity_policies)
    if deny:
        return False
    if request.key_arn is None:
        return ident
    if request.key_arn.split(":")[4] == request.account:
        return direct or (acct and ident)
    return (direct or acct) and ident


def listed(value: Json) -> list[Json]:
    """A list, or one element that stands for it."""
    return value if isinstance(value, list) else [value]


def reach(statement: Json, request: Request) -> str:
    """§8.3, §8.4: how a statement names the caller."""
    if "Principal" in statement:
        return named(statement["Principal"], request)
    if "NotPrincipal" in statement:
        return "none" if named(statement["NotPrincipal"], request) != "none" else "direct"
    return "identity"


def named(principal: Json, request: Request) -> str:
    """The closest way in which an element names the caller."""
    values = ["*"] if principal == "*" else [v for kind, vs in principal.items() if kind == "AWS" for v in listed(vs)]
    root = f"arn:aws:iam::{request.account}:root"
    best = "none"
    for value in values:
        if value in {"*", request.caller_arn, request.role_arn}:
            return "direct"
        if value in {root, request.account}:
            if request.caller_arn == root:  # §8.1: the account's root is covered by the account directly
                return "direct"
            best = "account"
    return best


def action_matches(statement: Json, request: Request) -> bool:
    """§8.5: without regard to case, with both wildcards; a statement without actions has no effect."""

    def one(pattern: str) -> bool:
        return fnmatch.fnmatchcase(request.action.lower(), pattern.lower().replace("[", "[[]"))

    if "Action" in statement:
        return any(one(pattern) for pattern in listed(statement["Action"]))
    return "NotAction" in statement and not any(one(pattern) for pattern in listed(statement["NotAction"]))


def resource_matches(statement: Json, request: Request, variables: Values | None) -> bool:
    """§8.5: part by part; variables after the fifth colon alone."""

    def one(pattern: str) -> bool:
        if pattern == "*":
            return True
        parts = pattern.split(":", 5)
        if request.key_arn is None or len(parts) != 6:
            return False
        found = request.key_arn.split(":", 5)
        last = regex(parts[5], variables)
        firsts = all(re.fullmatch(regex(p, None) or "", f) for p, f in zip(parts[:5], found[:5], strict=True))
        return firsts and last is not None and bool(re.fullmatch(last, found[5]))

    if "Resource" in statement:
        return any(one(pattern) for pattern in listed(statement["Resource"]))
    return "NotResource" in statement and not any(one(pattern) for pattern in listed(statement["NotResource"]))


def regex(text: str, variables: Values | None, *, wild: bool = True) -> str | None:
    """A pattern as a regular expression; None when a variable has no value (§7.3)."""
    parts = re.split(r"(\$\{[^}]*\})", text) if variables is not None else [text]
    made = ""
    for part in parts:
        if variables is not None and part.startswith("${"):
            value = variable(part, variables)
            if value is None:
                return None
            made += re.escape(value)
        elif wild:
            made += "".join({"*": "(?s:.*)", "?": "(?s:.)"}.get(char, re.escape(char)) for char in part)
        else:
            made += re.escape(part)
    return made


def variable(text: str, variables: Values) -> str | None:
    """What stands for ``${…}``."""
    inner = text[2:-1]
    if inner in {"*", "?", "$"}:
        return inner
    name, comma, default = inner.partition(", ")
    found = {key.lower(): value for key, value in variables.items()}.get(name.lower())
    if isinstance(found, tuple):
        return None
    return found if found is not None else default.strip("'") if comma else None


def conditions_hold(statement: Json, context: Values, *, variables: bool) -> bool:
    """§7.2: all operators, and all keys of each."""
    blocks = statement.get("Condition", {})
    return all(
        condition_holds(operator, key, [text_of(v) for v in listed(values)], context, variables=variables)
        and (statement["Effect"] == "Deny" or not is_zero(key, context) or any(map(is_zeros, listed(values))))
        for operator, keys in blocks.items()
        for key, values in keys.items()
    )


def is_zero(key: str, context: Values) -> bool:
    """§5.3: whether a register has what it has in debug mode."""
    names = [f"kms:recipientattestation:{name}" for name in ("imagesha384", "pcr0", "pcr1", "pcr2", "pcr8")]
    found = {name.lower(): value for name, value in context.items()}.get(key.lower())
    return key.lower() in names and isinstance(found, str) and re.fullmatch("0*", found) is not None


def is_zeros(value: Json) -> bool:
    """Whether a policy speaks of zeros aloud."""
    return re.fullmatch(r"[*?]*0[0*?]*", text_of(value)) is not None


def text_of(value: Json) -> str:
    """Booleans and numbers stand for their text."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def condition_holds(operator: str, key: str, values: list[str], context: Values, *, variables: bool) -> bool:
    """One operator on one key: the truth table of §6.3 and the rules of §7.2."""
    quantifier, _, name = operator.rpartition(":")
    actual = {k.lower(): v for k, v in context.items()}.get(key.lower())
    if name.lower() == "null":
        wanted = {value.lower() for value in values}
        return ("true" if actual is None else "false") in wanted
    if_exists = name.lower().endswith("ifexists")
    name = name.lower().removesuffix("ifexists")
    negated = "not" in name
    test = COMPARISONS[name.replace("not", "")]
    scope = context if variables else None

    def value_holds(item: str) -> bool:
        some = any(test(value, item, scope) for value in values)
        return not some if negated else some

    if actual is None:
        if if_exists or quantifier.lower() == "forallvalues":
            return True
        return False if quantifier.lower() == "foranyvalue" else negated
    items = [actual] if isinstance(actual, str) else list(actual)
    if quantifier.lower() == "forallvalues":
        return all(value_holds(item) for item in items)
    if quantifier.lower() == "foranyvalue":
        return any(value_holds(item) for item in items)
    return isinstance(actual, str) and value_holds(actual)


Test = Callable[[str, str, Values | None], bool]


def string(*, ignore_case: bool = False, wild: bool = False) -> Test:
    """A comparison of texts."""

    def test(value: str, item: str, scope: Values | None) -> bool:
        pattern = regex(value, scope, wild=wild)
        return pattern is not None and bool(re.fullmatch(pattern, item, re.IGNORECASE if ignore_case else 0))

    return test


def parsed(parse: Callable[[str], Any], relation: Callable[[Any, Any], bool]) -> Test:
    """A comparison of what texts mean: the request's, then the policy's."""

    def test(value: str, item: str, _scope: Values | None) -> bool:
        try:
            return relation(parse(item), parse(value))
        except ValueError:
            return False

    return test


def number(text: str) -> Fraction:
    """An integer or decimal."""
    return Fraction(text)


def moment(text: str) -> Fraction:
    """Seconds since the epoch, or ISO 8601."""
    try:
        return Fraction(text)
    except ValueError:
        found = datetime.fromisoformat(text)
        return Fraction((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def within(item: Any, network: Any) -> bool:
    """Whether an address or range lies in a range of its own family."""
    return bool(item.version == network.version and item.subnet_of(network))


def boolean(value: str, item: str, scope: Values | None) -> bool:
    """Bool, which has variables here (§7.3)."""
    pattern = regex(value, scope, wild=False)
    known = item.lower() in {"true", "false"}
    return known and pattern is not None and bool(re.fullmatch(pattern, item, re.IGNORECASE))


def arn(value: str, item: str, scope: Values | None) -> bool:
    """Six parts, each by itself; colons inside a variable are none."""
    shielded = re.sub(r"\$\{[^}]*\}", lambda m: m[0].replace(":", "\0"), value)
    parts = [part.replace("\0", ":") for part in shielded.split(":", 5)]
    found = item.split(":", 5)
    if len(parts) != 6 or len(found) != 6:
        return False
    patterns = [regex(part, scope) for part in parts]
    return all(p is not None and re.fullmatch(p, f) for p, f in zip(patterns, found, strict=True))


def network(text: str) -> Any:
    """A range, or an address that stands for the range of it alone."""
    return ipaddress.ip_network(text, strict=False)


def octets(text: str) -> bytes:
    """Base64."""
    return base64.b64decode(text, validate=True)


ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "equals": lambda a, b: a == b,
    "lessthan": lambda a, b: a < b,
    "lessthanequals": lambda a, b: a <= b,
    "greaterthan": lambda a, b: a > b,
    "greaterthanequals": lambda a, b: a >= b,
}
COMPARISONS: dict[str, Test] = {
    "stringequals": string(),
    "stringequalsignorecase": string(ignore_case=True),
    "stringlike": string(wild=True),
    **{f"numeric{name}": parsed(number, relation) for name, relation in ORDER.items()},
    **{f"date{name}": parsed(moment, relation) for name, relation in ORDER.items()},
    "bool": boolean,
    "binaryequals": parsed(octets, lambda a, b: a == b),
    "ipaddress": parsed(network, within),
    "arnequals": arn,
    "arnlike": arn,
}
