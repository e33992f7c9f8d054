"""Whoever takes the name of a removed user or role is not meant by the policies of before (kms.md §8.3)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.kms.conftest import NewStore
from tests.unit.kms.in_process import InProcess, in_process

from alcove.kms.call import Answer
from alcove.kms.policy.bind import rename_principals
from alcove.kms.policy.document import MAX_POLICY_BYTES, parse_policy
from alcove.kms.policy.lint import lint
from alcove.kms.sessions import LABEL, Sealer, Session
from alcove.kms.users import NewUser, add_role, add_user, remove_role, remove_user

ACCOUNT = "111122223333"
EVE, ROLE = f"arn:aws:iam::{ACCOUNT}:user/eve", f"arn:aws:iam::{ACCOUNT}:role/eve"
SESSION = f"arn:aws:sts::{ACCOUNT}:assumed-role/eve/night"
ROOT = {"Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "kms:*", "Resource": "*"}


@pytest.fixture
def kms(new_store: NewStore, tmp_path: Path) -> Iterator[InProcess]:
    with in_process(tmp_path, url=new_store(tmp_path)) as service:
        yield service


def key_for(kms: InProcess, principal: Any, element: str = "Principal", **more: Any) -> str:
    """A key that a principal may describe."""
    own = {"Effect": "Allow", element: {"AWS": principal}, "Action": "kms:DescribeKey", "Resource": "*", **more}
    text = json.dumps({"Version": "2012-10-17", "Statement": [ROOT, own]}).replace("/", "\\/")  # as JSON may write it
    return str(kms.call("CreateKey", Policy=text)["KeyMetadata"]["KeyId"])


def policy_of(kms: InProcess, key: str) -> str:
    """Its policy, as text."""
    return str(kms.call("GetKeyPolicy", KeyId=key)["Policy"])


def may(kms: InProcess, user: NewUser, key: str) -> bool:
    """Whether a user may describe a key."""
    return kms.send("DescribeKey", json.dumps({"KeyId": key}).encode(), user).status == 200


def test_a_user_made_again_is_a_stranger_to_key_policies(kms: InProcess) -> None:
    """Its predecessor's unique id stands in the policy, which can be read, and not put again."""
    eve = add_user(kms.store, "eve")
    keys = [key_for(kms, EVE), key_for(kms, [kms.admin.arn, EVE])]
    others = key_for(kms, kms.admin.arn)
    before = policy_of(kms, others)
    assert all(may(kms, eve, key) for key in keys)
    user_id = next(user.user_id for user in kms.store.users() if user.name == "eve")
    remove_user(kms.store, "eve")
    again = add_user(kms.store, "eve")
    for key in keys:
        assert not may(kms, again, key)
        policy = json.loads(policy_of(kms, key))
        assert user_id in json.dumps(policy["Statement"][1])
        assert EVE not in json.dumps(policy)
        answer = kms.send("PutKeyPolicy", json.dumps({"KeyId": key, "Policy": json.dumps(policy)}).encode())
        assert json.loads(answer.body)["__type"] == "MalformedPolicyDocumentException"
        assert "gone-principal" in {finding.code for finding in lint(json.dumps(policy), ["DescribeKey"])}
    assert policy_of(kms, others) == before


def test_a_role_and_its_sessions(kms: InProcess) -> None:
    """Both are named by the role's id afterwards; the user of the same name stays who it is."""
    eve = add_user(kms.store, "eve")
    add_role(kms.store, "eve", ["admin"], admin=False)
    role_id = kms.store.roles()[0].role_id
    key = key_for(kms, [ROLE, SESSION, EVE])
    remove_role(kms.store, "eve")
    statement = json.loads(policy_of(kms, key))["Statement"][1]
    assert statement["Principal"]["AWS"] == [role_id, f"{role_id}:night", EVE]
    assert may(kms, eve, key)


def test_a_session_of_a_role_made_again_is_a_stranger_to_grants(kms: InProcess) -> None:
    """The grant was for a session of the role that is gone; there is none for sessions of a role that never was."""

    def sent(name: str) -> Answer:
        body = {"KeyId": key, "GranteePrincipal": name, "Operations": ["DescribeKey"]}
        return kms.send("CreateGrant", json.dumps(body).encode())

    def described() -> int:
        """The status of the answer to the session, with credentials of the present role."""
        session = Session(kms.store.roles()[0].role_id, "night", 0, int(kms.clock().timestamp()) + 60)
        made = Sealer(kms.store.secret(LABEL)).seal(session, bytes(22))
        user = NewUser("", made.access_key_id, made.secret)
        return kms.send(
            "DescribeKey", json.dumps({"KeyId": key}).encode(), user, x_amz_security_token=made.token
        ).status

    key = kms.call("CreateKey")["KeyMetadata"]["KeyId"]
    for name in (SESSION, SESSION.replace("eve/", "nobody/"), SESSION.replace(":aws:", ":aws-cn:")):
        assert json.loads(sent(name).body)["__type"] == "InvalidArnException"
    add_role(kms.store, "eve", ["admin"], admin=False)
    assert sent(SESSION).status == 200
    assert described() == 200
    assert sent(SESSION.replace(":aws:", ":aws-cn:")).status == 400
    remove_role(kms.store, "eve")
    add_role(kms.store, "eve", ["admin"], admin=False)
    assert described() == 400


def test_a_statement_about_others_is_about_the_new_one_too(kms: InProcess) -> None:
    """NotPrincipal with a removed user excepts nobody any more."""
    add_user(kms.store, "eve")
    key = key_for(kms, EVE, "NotPrincipal", Effect="Deny")
    remove_user(kms.store, "eve")
    assert not may(kms, add_user(kms.store, "eve"), key)


def test_renaming_keeps_the_rest() -> None:
    """Text that names nobody is the very same; what is renamed fits where it was, and reads the same otherwise."""
    plain = json.dumps({"Version": "2012-10-17", "Statement": ROOT}, indent=2)
    assert rename_principals(plain, lambda name: name) == plain
    own = {"Effect": "Allow", "Principal": {"AWS": EVE}, "Action": "kms:*", "Resource": "*", "Sid": "é \ud800"}
    text = json.dumps({"Statement": [own, ROOT]}, separators=(",", ":"))
    filled = text + " " * (MAX_POLICY_BYTES - len(text))
    renamed = rename_principals(filled, lambda name: "AIDA" + "A" * 16 if name == EVE else name)
    assert len(renamed.encode()) <= MAX_POLICY_BYTES
    assert [s.sid for s in parse_policy(renamed).statements] == ["é \ud800", None]
