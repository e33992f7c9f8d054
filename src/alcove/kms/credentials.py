"""Who a signed request comes from: a user with a long-term key, or a session of a role (kms.md §22, §23).

Core: a request and the tools in; an `Identity` out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final

from alcove.kms import sigv4
from alcove.kms.call import Identity, Tools
from alcove.kms.claim import SignedRequest, token_of
from alcove.kms.policy.document import PolicyKind, parse_policy
from alcove.kms.policy.principals import Caller
from alcove.kms.sessions import LABEL, PREFIX, Sealer

MAX_CALLERS: Final = 4096  # that are remembered


def identify(
    request: SignedRequest, tools: Tools, *, now: datetime, service: str, regions: Collection[str]
) -> tuple[Identity, str]:
    """The authenticated caller with the policies that it has now, and the Region that the request is signed for.

    Raises:
        KmsError: In the classes and words of §22.2.
    """
    found: list[Identity] = []

    def find(access_key_id: str) -> sigv4.Secret | None:
        look = _session if access_key_id.startswith(PREFIX) else _user
        pair = look(tools, request, access_key_id)
        if pair is None:
            return None
        found.append(pair[1])
        return pair[0]

    scope = sigv4.authenticate(request, now=now, regions=regions, find=find, service=service)
    return found[0], scope.region


def _user(tools: Tools, request: SignedRequest, access_key_id: str) -> tuple[sigv4.Secret, Identity] | None:
    del request
    access_key = tools.store.access_key(access_key_id)
    if access_key is None:
        return None
    known = tools.callers.get(access_key_id)
    if known is not None and known[0] is access_key:  # the store gives the same object until something changes
        same: tuple[sigv4.Secret, Identity] = known[1]
        return same
    user, realm = access_key.user, tools.realm
    caller = Caller(realm.user_arn(user.name), realm.account, user.user_id, user.name)
    found = sigv4.Secret(access_key.secret), _identity(caller, access_key_id, user.policies)
    if len(tools.callers) >= MAX_CALLERS:
        tools.callers.clear()
    tools.callers[access_key_id] = access_key, found
    return found


def _session(tools: Tools, request: SignedRequest, access_key_id: str) -> tuple[sigv4.Secret, Identity] | None:
    """A session without its token, or of a role that is gone, is nobody."""
    token = token_of(request) or ""
    opened = Sealer(tools.store.secret(LABEL)).open(access_key_id, token)
    role = tools.store.role(opened[0].role_id) if opened else None
    if opened is None or role is None:
        return None
    session, temporary = opened
    caller = Caller(
        tools.realm.session_arn(role.name, session.name),
        tools.realm.account,
        f"{role.role_id}:{session.name}",
        role_arn=tools.realm.role_arn(role.name),
        issued=session.issued,
    )
    expires = datetime.fromtimestamp(session.expires, UTC)
    return sigv4.Secret(temporary.secret, token, expires), _identity(caller, access_key_id, role.policies)


def _identity(caller: Caller, access_key_id: str, policies: Sequence[str]) -> Identity:
    return Identity(caller, access_key_id, tuple(parse_policy(text, PolicyKind.IDENTITY) for text in policies))
