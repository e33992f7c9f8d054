"""The request context: what is left out of it is never what somebody reads."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from alcove.kms.call import Call, Identity, Peer
from alcove.kms.context import request_context
from alcove.kms.keys import PRIMARY, Key, Realm
from alcove.kms.policy.principals import Caller
from alcove.kms.store import Alias

REALM = Realm("111122223333", "us-east-1")
USER = Caller(REALM.user_arn("a"), REALM.account, "AIDAEXAMPLE", "a")
SESSION = Caller(REALM.session_arn("r", "s"), REALM.account, "AROAEXAMPLE:s", role_arn=REALM.role_arn("r"), issued=1)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = Key("12345678-0000-4000-8000-000000000000", 0.0, "{}", "11" * 32, REALM.region, role=PRIMARY)
ENCRYPT = Call(
    "Encrypt",
    {"EncryptionContext": {"App": "demo"}},
    Identity(USER, "AKIDEXAMPLE", ()),
    Peer("192.0.2.1", "agent", secure=True),
    NOW,
    KEY,
    alias=Alias(REALM.region, "alias/a", KEY.key_id, 0.0, 0.0),
)
CREATE = replace(ENCRYPT, operation="CreateKey", params={"Tags": [{"TagKey": "a", "TagValue": "b"}]}, key=None)
OF_SESSION = replace(ENCRYPT, identity=Identity(SESSION, "ASIAEXAMPLE", ()))


@pytest.mark.parametrize("call", [ENCRYPT, CREATE, OF_SESSION], ids=lambda call: call.operation)
def test_whoever_reads_one_key_finds_it_as_among_all(call: Call) -> None:
    """Parts of the context that nobody reads are not made; each of the others is the same."""
    whole = request_context(call, REALM)
    assert len(whole) > 20
    for name, value in whole.items():
        assert request_context(call, REALM, (name,))[name] == value


def test_times_are_to_the_second() -> None:
    """The two forms of a request's time, and the time of a session."""
    context = request_context(OF_SESSION, REALM)
    assert context["aws:currenttime"] == "2026-01-02T03:04:05Z"
    assert context["aws:epochtime"] == "1767323045"
    assert context["aws:tokenissuetime"] == "1970-01-01T00:00:01Z"
