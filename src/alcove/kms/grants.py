"""Which grants let a caller do what it asks (kms.md §17).

Core: a call and a key's grants in; those that fit out. Grants allow only; policies' denies were read before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from alcove.kms.call import Call, Tools
from alcove.kms.keys import Key
from alcove.kms.policy.principals import Caller
from alcove.kms.specs import AGREE, ENCAPSULATE, ENCRYPT, MAC, SIGN, SYMMETRIC
from alcove.kms.store import Grant

MAX_GRANTS: Final = 50_000  # §9, per key
SELF: Final = "self"
ACCOUNT: Final = "account"
EQUALS: Final = "EncryptionContextEquals"
SUBSET: Final = "EncryptionContextSubset"
_ALWAYS: Final = frozenset({"DescribeKey", "CreateGrant", "RetireGrant"})
_UNCONSTRAINED: Final = frozenset({"DescribeKey", "RetireGrant"})
_WRAPPING: Final = frozenset({
    "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext",
})  # fmt: skip
_FITTING: Final = {
    ENCRYPT: frozenset({"Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo"}),
    SIGN: frozenset({"Sign", "Verify"}),
    AGREE: frozenset({"DeriveSharedSecret"}),
    MAC: frozenset({"GenerateMac", "VerifyMac"}),
    ENCAPSULATE: frozenset({"Encapsulate", "Decapsulate"}),
}


def fitting(key: Key) -> frozenset[str]:
    """The operations that a grant on this key may name."""
    extra = _WRAPPING if key.spec == SYMMETRIC else frozenset() if key.usage == MAC else frozenset({"GetPublicKey"})
    return _ALWAYS | _FITTING[key.usage] | extra


def grants_of(tools: Tools, call: Call, key: Key) -> Iterator[tuple[Grant, str]]:
    """Grants on a key that cover a call, each with SELF or ACCOUNT: the grantee is the caller, or its account."""
    for arn, reach in _names(tools, call.identity.caller):
        where = {"region": key.region, "key_id": key.key_id, "grantee": arn}
        for grant in tools.store.grants("", MAX_GRANTS, **where):
            same = _is_same(grant.grantee_id, call.identity.caller)
            if same and call.operation in grant.operations and _allows(grant, call):
                yield grant, reach


def may_retire(tools: Tools, caller: Caller, grant: Grant) -> bool:
    """Whether the grant itself lets a caller retire it: the account's root, its retiring principal, or its grantee."""
    if caller.is_root:
        return True
    names = {arn for arn, reach in _names(tools, caller) if reach == SELF}
    retires = grant.retiring in names and _is_same(grant.retiring_id, caller)
    uses = grant.grantee in names and _is_same(grant.grantee_id, caller)
    return retires or (uses and "RetireGrant" in grant.operations)


def _names(tools: Tools, caller: Caller) -> list[tuple[str, str]]:
    own = [(arn, SELF) for arn in (caller.arn, caller.role_arn) if arn]
    return [*own, (tools.realm.root_arn, SELF if caller.is_root else ACCOUNT)]


def _is_same(user_id: str, caller: Caller) -> bool:
    """A role's sessions have ids that start with the role's."""
    return not user_id or caller.user_id.partition(":")[0] == user_id


def _allows(grant: Grant, call: Call) -> bool:
    constraints = grant.constraints or {}
    if call.operation == "CreateGrant":
        return _covers(grant, call)
    if not constraints or call.operation in _UNCONSTRAINED:
        return True
    return satisfies(constraints, call.params.get("EncryptionContext", {}))


def satisfies(constraints: Mapping[str, Any], context: Mapping[str, str]) -> bool:
    """Whether an encryption context is what the constraints want; names and values with their case."""
    if EQUALS in constraints and dict(context) != constraints[EQUALS]:
        return False
    return SUBSET not in constraints or constraints[SUBSET].items() <= context.items()


def _covers(parent: Grant, call: Call) -> bool:
    """Whether a new grant gives no more than the one that allows to make it (§17)."""
    child: Mapping[str, Any] = call.params.get("Constraints", {})
    if not set(call.params["Operations"]) <= set(parent.operations):
        return False
    wanted = parent.constraints or {}
    if EQUALS in wanted:
        return bool(child.get(EQUALS) == wanted[EQUALS])
    if SUBSET in wanted:
        given = child.get(EQUALS) or child.get(SUBSET) or {}
        return bool(wanted[SUBSET].items() <= given.items())
    return True
