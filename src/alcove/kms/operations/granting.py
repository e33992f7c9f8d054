"""Grants: making, listing, taking back (kms.md §17).

Core: an authorized call and the tools in; the answer's members out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, unsupported, validation
from alcove.kms.grants import EQUALS, MAX_GRANTS, SUBSET, fitting
from alcove.kms.operations.pages import page
from alcove.kms.policy.principals import Kind, parse_principals
from alcove.kms.resolve import grant_of
from alcove.kms.specs import SYMMETRIC
from alcove.kms.store import Grant
from alcove.kms.tokens import NONCE_BYTES, new_token

MAX_PAIRS: Final = 8  # §9
MAX_VALUE: Final = 384
_PRINCIPALS: Final = frozenset({Kind.ACCOUNT, Kind.USER, Kind.ROLE, Kind.SESSION, Kind.FEDERATED_USER})


def create_grant(tools: Tools, call: Call) -> dict[str, Any]:
    """CreateGrant: the same again under a name is the same grant, with a token of its own."""
    params, key = call.params, call.the_key
    grantee, retiring = params["GranteePrincipal"], params.get("RetiringPrincipal", "")
    grant = Grant(
        grant_id=tools.random(32).hex(),
        region=key.region,
        key_id=key.key_id,
        created=call.seconds,
        grantee=_arn(tools, grantee),
        operations=tuple(dict.fromkeys(params["Operations"])),
        name=params.get("Name"),
        grantee_id=_identify(tools, grantee),
        retiring=_arn(tools, retiring) if retiring else "",
        retiring_id=_identify(tools, retiring) if retiring else "",
        constraints=params.get("Constraints") or None,
    )
    made = _repeated(tools, grant) or grant
    if made is grant:
        if tools.store.count_grants(key) >= MAX_GRANTS:
            raise KmsError("LimitExceededException", f"A key has at most {MAX_GRANTS} grants.")
        tools.store.add_grant(grant)
    token = new_token(made.grant_id, tools.store.secret("grant tokens"), tools.random(NONCE_BYTES))
    return {"GrantToken": token, "GrantId": made.grant_id}


def list_grants(tools: Tools, call: Call) -> dict[str, Any]:
    """ListGrants: of one key, in pages, by id and grantee when they are given."""
    params, key = call.params, call.the_key
    match = {"region": key.region, "key_id": key.key_id}
    if "GrantId" in params:
        match["grant_id"] = grant_of(tools, key, params["GrantId"]).grant_id
    if "GranteePrincipal" in params:
        match["grantee"] = _arn(tools, params["GranteePrincipal"])
    if "GranteeServicePrincipal" in params:
        return {"Grants": [], "Truncated": False}
    return _page(tools, call, match)


def list_retirable_grants(tools: Tools, call: Call) -> dict[str, Any]:
    """ListRetirableGrants: of every key of the Region that one principal may retire, in pages."""
    if ("RetiringPrincipal" in call.params) == ("RetiringServicePrincipal" in call.params):
        raise validation("Specify either RetiringPrincipal or RetiringServicePrincipal.")
    if "RetiringServicePrincipal" in call.params:
        return {"Grants": [], "Truncated": False}
    retiring = _arn(tools, call.params["RetiringPrincipal"])
    return _page(tools, call, {"region": tools.realm.region, "retiring": retiring})


def revoke_grant(tools: Tools, call: Call) -> dict[str, Any]:
    """RevokeGrant."""
    tools.store.remove_grant(grant_of(tools, call.the_key, call.params["GrantId"]))
    return {}


def retire_grant(tools: Tools, call: Call) -> dict[str, Any]:
    """RetireGrant."""
    if call.grant is None:
        raise RuntimeError("RetireGrant has no grant")
    tools.store.remove_grant(call.grant)
    return {}


def check_known(tools: Tools, call: Call) -> None:
    """RevokeGrant: the grant is there, before a dry run ends."""
    grant_of(tools, call.the_key, call.params["GrantId"])


def check_grant(tools: Tools, call: Call) -> None:
    """Refuses operations, constraints and principals that a grant on this key cannot have."""
    params, key = call.params, call.the_key
    if {"GranteeServicePrincipal", "RetiringServicePrincipal"} & set(params):
        raise unsupported("grants to services are not served")
    if "GranteePrincipal" not in params:
        raise validation("GranteePrincipal is required.")
    if not params["Operations"]:
        raise validation("A grant needs at least one operation.")
    unfit = sorted(set(params["Operations"]) - fitting(key))
    if unfit:
        raise validation(f"The operations {unfit} cannot be granted on a key of {key.spec} for {key.usage}.")
    for name in ("GranteePrincipal", "RetiringPrincipal"):
        if name in params:
            _identify(tools, params[name])
    _check_constraints(params.get("Constraints") or {}, key.spec)


def _check_constraints(constraints: dict[str, Any], spec: str) -> None:
    if "SourceArn" in constraints:
        raise unsupported("SourceArn is for grants to services, which are not served")
    if constraints and spec != SYMMETRIC:
        raise validation("Grant constraints are for symmetric encryption keys.")
    if {EQUALS, SUBSET} <= set(constraints):
        raise validation("A grant has one of EncryptionContextEquals and EncryptionContextSubset.")
    for pairs in constraints.values():
        if len(pairs) > MAX_PAIRS or any(len(value) > MAX_VALUE for value in pairs.values()):
            raise validation(f"A grant constraint has at most {MAX_PAIRS} pairs with values of {MAX_VALUE} characters.")


def _arn(tools: Tools, principal: str) -> str:
    """The ARN under which a grant knows a principal; a bare account id stands for the account."""
    kind = _principal_kind(principal)
    return (
        f"arn:{tools.realm.partition}:iam::{principal}:root"
        if kind is Kind.ACCOUNT and ":" not in principal
        else principal
    )


def _principal_kind(principal: str) -> Kind:
    try:
        kind = parse_principals({"AWS": principal})[0].kind
    except ValueError as error:
        raise KmsError("InvalidArnException", f"{principal} is not the ARN of a principal.") from error
    if kind not in _PRINCIPALS:
        raise KmsError("InvalidArnException", f"{principal} is not the ARN of a principal.")
    return kind


def _identify(tools: Tools, principal: str) -> str:
    """The unique id of a user or role of our own account, or of the role of a session; it must exist."""
    kind, realm = _principal_kind(principal), tools.realm
    if kind not in {Kind.USER, Kind.ROLE, Kind.SESSION} or f"::{realm.account}:" not in principal:
        return ""
    named = principal
    if kind is Kind.SESSION:
        _, role, session = principal.split("/")
        named = realm.role_arn(role) if realm.session_arn(role, session) == principal else ""
    users = {realm.user_arn(user.name): user.user_id for user in tools.store.users()}
    roles = {realm.role_arn(role.name): role.role_id for role in tools.store.roles()}
    found = (users | roles).get(named)
    if found is None:
        raise KmsError("InvalidArnException", f"ARN does not refer to a valid principal: {principal}")
    return found


def _repeated(tools: Tools, grant: Grant) -> Grant | None:
    """The grant that this one repeats: same name, and everything else the same."""
    if grant.name is None:
        return None
    same = tools.store.grants("", 1000, region=grant.region, key_id=grant.key_id, name=grant.name)
    for one in same:
        if replace(one, grant_id="", created=0) == replace(grant, grant_id="", created=0):
            return one
    return None


def _page(tools: Tools, call: Call, match: dict[str, str]) -> dict[str, Any]:
    def fetch(after: str, limit: int) -> list[Grant]:
        return tools.store.grants(after, limit, **match)

    found, rest = page(tools, call, fetch=fetch, name=lambda grant: grant.grant_id, default=50, most=100)
    return {"Grants": [_entry(tools, grant) for grant in found], **rest}


def _entry(tools: Tools, grant: Grant) -> dict[str, Any]:
    """A grant as lists have it; never a token."""
    return {
        "KeyId": tools.realm.key_arn(grant.key_id),
        "GrantId": grant.grant_id,
        "Name": grant.name,
        "CreationDate": grant.created,
        "GranteePrincipal": grant.grantee,
        "RetiringPrincipal": grant.retiring or None,
        "IssuingAccount": tools.realm.root_arn,
        "Operations": list(grant.operations),
        "Constraints": grant.constraints,
    }
