"""STS beside the KMS, as SDKs use it: boto3's own client and credential chain."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from tests.unit.kms.conftest import NewStore
from tests.unit.kms.server_harness import ACCOUNT, RunningKms, config, refused, running

from alcove.kms import users
from alcove.kms.audit import inspect_log
from alcove.kms.sessions import Sealer, Session
from alcove.kms.stores import open_store
from alcove.kms.users import NewUser

ROLE = f"arn:aws:iam::{ACCOUNT}:role/deploy"


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Iterator[RunningKms]:
    directory = tmp_path_factory.mktemp("sts")
    with running(config(directory, store=new_store(directory))) as service:
        with contextlib.closing(open_store(service.config.store, service.config.root_key)) as store:
            users.add_role(store, "deploy", ["app0"], admin=True)
        yield service


def sts(url: str, user: NewUser, token: str | None = None) -> Any:
    """boto3's STS client."""
    return boto3.client(
        "sts",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=user.access_key_id,
        aws_secret_access_key=user.secret_access_key,
        aws_session_token=token,
        config=Config(retries={"max_attempts": 0}),
    )


def assumed(kms: RunningKms, service: str, **options: Any) -> Any:
    """A client with the credentials of a new session of the role."""
    made = sts(kms.url, kms.app_user).assume_role(RoleArn=ROLE, RoleSessionName="night")["Credentials"]
    given = {
        "aws_access_key_id": made["AccessKeyId"],
        "aws_secret_access_key": made["SecretAccessKey"],
        "aws_session_token": made["SessionToken"],
    }
    return boto3.client(
        service,
        endpoint_url=kms.url,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}),
        **(given | options),
    )


def code(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    """STS's code and the status."""
    response = error.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_a_user_learns_who_it_is(kms: RunningKms) -> None:
    """GetCallerIdentity has the user's ARN, its unique id and the account."""
    found = sts(kms.url, kms.app_user).get_caller_identity()
    assert (found["Arn"], found["Account"]) == (f"arn:aws:iam::{ACCOUNT}:user/app0", ACCOUNT)
    assert found["UserId"].startswith("AIDA")


def test_a_session_learns_who_it_is(kms: RunningKms) -> None:
    """The session's ARN names role and session; the user id has both, too."""
    found = assumed(kms, "sts").get_caller_identity()
    assert found["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/deploy/night"
    assert found["UserId"].startswith("AROA")
    assert found["UserId"].endswith(":night")


def test_a_session_has_the_roles_rights(kms: RunningKms) -> None:
    """The user itself may make no key; its session may, and a key policy that names the role lets it use one."""
    with refused("AccessDeniedException"):
        kms.app.create_key()
    client = assumed(kms, "kms")
    key = client.create_key()["KeyMetadata"]["KeyId"]
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"AWS": ROLE}, "Action": "kms:*", "Resource": "*"}],
    }
    client.put_key_policy(KeyId=key, Policy=json.dumps(policy))
    assert (
        client.decrypt(CiphertextBlob=client.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"])["Plaintext"] == b"x"
    )
    with refused("AccessDeniedException"):
        kms.admin.describe_key(KeyId=key)
    last = [record for record in kms.records() if record["eventName"] == "CreateKey"][-1]
    assert last["userIdentity"]["type"] == "AssumedRole"


def test_a_profile_with_a_role_works(kms: RunningKms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own chain, role_arn and source_profile, assumes the role and signs with what it got."""
    file = tmp_path / "config"
    file.write_text(
        f"[profile base]\naws_access_key_id={kms.app_user.access_key_id}\n"
        f"aws_secret_access_key={kms.app_user.secret_access_key}\n"
        f"[profile deploy]\nrole_arn={ROLE}\nsource_profile=base\nregion=us-east-1\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for service in ("STS", "KMS"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", kms.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    session = boto3.Session(profile_name="deploy")
    assert "assumed-role/deploy/" in session.client("sts").get_caller_identity()["Arn"]
    assert session.client("kms").create_key()["KeyMetadata"]["Enabled"]


def test_only_trusted_users_take_a_role_on(kms: RunningKms) -> None:
    """The administrator is not trusted, and a role that is not there is refused in the same words."""
    client = sts(kms.url, kms.admin_user)
    texts = []
    for arn in (ROLE, ROLE.replace("deploy", "nothing")):
        with pytest.raises(ClientError) as caught:
            client.assume_role(RoleArn=arn, RoleSessionName="night")
        assert code(caught) == ("AccessDenied", 403)
        texts.append(caught.value.response["Error"]["Message"].replace(arn, ""))
    assert texts[0] == texts[1]


def test_a_deny_stops_the_trusted(kms: RunningKms) -> None:
    """An identity policy that denies sts:AssumeRole ends it, and its removal is felt."""
    deny = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Deny", "Action": "sts:AssumeRole", "Resource": "*"}],
    }
    with contextlib.closing(open_store(kms.config.store, kms.config.root_key)) as store:
        users.set_user_policies(store, "app0", admin=False, policies=[json.dumps(deny)])
        kms.settle()
        with pytest.raises(ClientError) as caught:
            assumed(kms, "sts")
        assert code(caught) == ("AccessDenied", 403)
        users.set_user_policies(store, "app0", admin=False, policies=[])
    kms.settle()
    assumed(kms, "sts").get_caller_identity()


@pytest.mark.parametrize(
    "change",
    [
        {"DurationSeconds": 43_201},
        {"Policy": '{"Version":"2012-10-17","Statement":[]}'},
        {"ExternalId": "someone"},
        {"Tags": [{"Key": "a", "Value": "b"}]},
    ],
)
def test_what_is_not_served_is_refused(kms: RunningKms, change: dict[str, Any]) -> None:
    """Nothing that would narrow the session is silently left out."""
    with pytest.raises(ClientError) as caught:
        sts(kms.url, kms.app_user).assume_role(RoleArn=ROLE, RoleSessionName="night", **change)
    assert code(caught) == ("ValidationError", 400)


def test_other_operations_are_unknown(kms: RunningKms) -> None:
    """GetSessionToken is not here."""
    with pytest.raises(ClientError) as caught:
        sts(kms.url, kms.app_user).get_session_token()
    assert code(caught) == ("InvalidAction", 400)


def test_credentials_that_are_wrong_are_told_apart(kms: RunningKms) -> None:
    """A wrong secret, an unknown key and a token with a long-term key have STS's codes and status 403."""
    wrong = NewUser("", kms.app_user.access_key_id, "x" * 40)
    unknown = NewUser("", "AKIA2345ABCDEFGHIJKL", "x" * 40)
    for user, token, expected in (
        (wrong, None, "SignatureDoesNotMatch"),
        (unknown, None, "InvalidClientTokenId"),
        (kms.app_user, "token", "InvalidClientTokenId"),
    ):
        with pytest.raises(ClientError) as caught:
            sts(kms.url, user, token).get_caller_identity()
        assert code(caught) == (expected, 403)


def test_a_session_needs_its_own_token(kms: RunningKms) -> None:
    """Without it, with a changed one, or with that of another session, the access key is unknown to the KMS."""
    made = sts(kms.url, kms.app_user).assume_role(RoleArn=ROLE, RoleSessionName="other")["Credentials"]
    token = made["SessionToken"]
    flipped = token[:-5] + ("A" if token[-5] != "A" else "B") + token[-4:]
    for bad in (None, flipped, token, "x" * 3000):
        with refused("UnrecognizedClientException"):
            assumed(kms, "kms", aws_session_token=bad).list_keys()


def test_a_session_ends_in_time(kms: RunningKms) -> None:
    """Credentials past their end are told to be expired."""
    with contextlib.closing(open_store(kms.config.store, kms.config.root_key)) as store:
        role = store.roles()[0]
        past = int((datetime.now(UTC) - timedelta(hours=2)).timestamp())
        made = Sealer(store.secret("sts sessions")).seal(Session(role.role_id, "old", past, past + 900), bytes(22))
    given = {
        "aws_access_key_id": made.access_key_id,
        "aws_secret_access_key": made.secret,
        "aws_session_token": made.token,
    }
    with refused("ExpiredTokenException"):
        assumed(kms, "kms", **given).list_keys()
    with pytest.raises(ClientError) as caught:
        assumed(kms, "sts", **given).get_caller_identity()
    assert code(caught) == ("ExpiredToken", 403)


def test_a_session_ends_with_its_role(kms: RunningKms) -> None:
    """A removed role's sessions are nobody's; a new role of the same name does not revive them."""
    with contextlib.closing(open_store(kms.config.store, kms.config.root_key)) as store:
        users.add_role(store, "short", ["app0"], admin=True)
        made = sts(kms.url, kms.app_user).assume_role(RoleArn=ROLE.replace("deploy", "short"), RoleSessionName="one")
        found = made["Credentials"]
        user = NewUser("", found["AccessKeyId"], found["SecretAccessKey"])
        sts(kms.url, user, found["SessionToken"]).get_caller_identity()
        users.remove_role(store, "short")
        users.add_role(store, "short", ["app0"], admin=True)
    kms.settle()
    with pytest.raises(ClientError) as caught:
        sts(kms.url, user, found["SessionToken"]).get_caller_identity()
    assert code(caught) == ("InvalidClientTokenId", 403)


def test_a_user_made_again_is_a_stranger(kms: RunningKms) -> None:
    """A role trusts the user, not its name."""
    with contextlib.closing(open_store(kms.config.store, kms.config.root_key)) as store:
        users.add_user(store, "eve")
        users.add_role(store, "hers", ["eve"], admin=False)
        users.remove_user(store, "eve")
        again = users.add_user(store, "eve")
    with pytest.raises(ClientError) as caught:
        sts(kms.url, again).assume_role(RoleArn=ROLE.replace("deploy", "hers"), RoleSessionName="one")
    assert code(caught) == ("AccessDenied", 403)


def test_the_log_has_sessions_and_no_secrets(kms: RunningKms) -> None:
    """AssumeRole is recorded with its access key id; secret and token are nowhere, and the chain holds."""
    made = sts(kms.url, kms.app_user).assume_role(RoleArn=ROLE, RoleSessionName="logged")["Credentials"]
    record = kms.records()[-1]
    assert (record["eventSource"], record["eventName"]) == ("sts.amazonaws.com", "AssumeRole")
    assert record["responseElements"]["credentials"]["accessKeyId"] == made["AccessKeyId"]
    text = kms.config.audit.read_bytes()
    assert made["SecretAccessKey"].encode() not in text
    assert made["SessionToken"].encode() not in text
    assert inspect_log(text.splitlines(keepends=True)).records == len(kms.records())


def fetch(url: str, *, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Status and text of an answer to a request that is signed in its URL."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"/?{parts.query}", headers=named)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_a_presigned_url_says_who_made_it(kms: RunningKms) -> None:
    """boto3's URL is good for whoever has it, by GET and by POST, until somebody changes it."""
    maker = sts(kms.url, kms.app_user)
    for method in ("GET", "POST"):
        url = maker.generate_presigned_url("get_caller_identity", ExpiresIn=60, HttpMethod=method)
        status, text = fetch(url, method=method)
        assert (status, kms.app_user.arn in text) == (200, True)
        status, text = fetch(url.replace("X-Amz-Expires=60", "X-Amz-Expires=600"), method=method)
        assert (status, "SignatureDoesNotMatch" in text) == (403, True)


def test_a_presigned_request_to_the_kms(kms: RunningKms) -> None:
    """It names its operation in a signed header, so a URL is good for one operation."""
    url = kms.admin.generate_presigned_url("list_keys", ExpiresIn=60)
    kind = {"content_type": "application/x-amz-json-1.1"}
    status, text = fetch(url, method="POST", x_amz_target="TrentService.ListKeys", **kind)
    assert (status, "Keys" in json.loads(text)) == (200, True)
    status, text = fetch(url, method="POST", x_amz_target="TrentService.CreateKey", **kind)
    assert (status, json.loads(text)["__type"]) == (400, "InvalidSignatureException")
