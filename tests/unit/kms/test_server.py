"""The service as clients see it: real boto3 against a real server."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from tests.unit.kms.server_harness import ACCOUNT, ROOT_ARN, RunningKms, client, config, refused, running

from alcove.errors import UsageError
from alcove.kms.audit import inspect_log
from alcove.kms.stores import open_store
from alcove.kms.users import add_user, list_users, remove_user


def test_a_secret_goes_through(kms: RunningKms, key: str) -> None:
    """Encrypt and Decrypt, without and with KeyId; answers carry the key's ARN."""
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"secret", EncryptionContext={"app": "demo"})
    arn = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{key}"
    assert (sealed["KeyId"], sealed["EncryptionAlgorithm"]) == (arn, "SYMMETRIC_DEFAULT")
    for extra in ({}, {"KeyId": key}, {"KeyId": arn}):
        opened = kms.admin.decrypt(CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext={"app": "demo"}, **extra)
        assert (opened["Plaintext"], opened["KeyId"]) == (b"secret", arn)
        assert len(opened["KeyMaterialId"]) == 64


def test_a_new_key_describes_itself(kms: RunningKms) -> None:
    """KeyMetadata has the members of kms.md §2.4 and no others."""
    tags = [{"TagKey": "team", "TagValue": "blue"}]
    made = kms.admin.create_key(Description="first", Tags=tags)["KeyMetadata"]
    assert kms.admin.describe_key(KeyId=made["KeyId"])["KeyMetadata"] == made
    assert (made["KeyState"], made["Enabled"], made["Description"]) == ("Enabled", True, "first")
    assert "DeletionDate" not in made
    assert made["MultiRegion"] is False
    assert kms.admin.list_resource_tags(KeyId=made["KeyId"])["Tags"] == tags


def test_context_names_differ_in_more_than_case(kms: RunningKms, key: str) -> None:
    """Policies read names without case, so a second spelling could hide the first from a Deny."""
    with refused("ValidationException"):
        kms.admin.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"app": "demo", "App": "other"})


def test_data_keys_open_again(kms: RunningKms, key: str) -> None:
    """A data key's blob decrypts to the key; sizes follow KeySpec or NumberOfBytes."""
    for size, options in ((32, {"KeySpec": "AES_256"}), (16, {"KeySpec": "AES_128"}), (64, {"NumberOfBytes": 64})):
        made = kms.admin.generate_data_key(KeyId=key, **options)
        assert len(made["Plaintext"]) == size
        assert kms.admin.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == made["Plaintext"]
    with refused("ValidationException"):
        kms.admin.generate_data_key(KeyId=key)
    assert "Plaintext" not in kms.admin.generate_data_key_without_plaintext(KeyId=key, KeySpec="AES_256")


def test_random_bytes(kms: RunningKms) -> None:
    """As many as asked for, never the same; the parameter is required in fact."""
    drawn = {kms.admin.generate_random(NumberOfBytes=32)["Plaintext"] for _ in range(3)}
    assert {len(data) for data in drawn} == {32}
    assert len(drawn) == 3
    with refused("ValidationException") as error:
        kms.admin.generate_random()
    assert error["message"] == "NumberOfBytes is required."


def test_what_does_not_fit_together_is_refused(kms: RunningKms, key: str) -> None:
    """Another context, another key, a changed blob, a blob of nobody: each has its class."""
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"a": "b"})["CiphertextBlob"]
    other = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    with refused("InvalidCiphertextException"):
        kms.admin.decrypt(CiphertextBlob=sealed)
    with refused("IncorrectKeyException"):
        kms.admin.decrypt(CiphertextBlob=sealed, KeyId=other, EncryptionContext={"a": "b"})
    with refused("InvalidCiphertextException"):
        kms.admin.decrypt(CiphertextBlob=b"garbage")
    with refused("InvalidCiphertextException"):
        kms.admin.decrypt(CiphertextBlob=sealed[:-1], EncryptionContext={"a": "b"})
    stranger = sealed.replace(key.encode(), b"0" * 8 + key[8:].encode())
    with refused("AccessDeniedException") as error:
        kms.admin.decrypt(CiphertextBlob=stranger, EncryptionContext={"a": "b"})
    assert error["message"].startswith("The ciphertext refers to a customer master key that does not exist")
    with refused("InvalidKeyUsageException"):
        kms.admin.decrypt(CiphertextBlob=sealed, EncryptionAlgorithm="RSAES_OAEP_SHA_256")


@pytest.mark.parametrize(
    ("key_id", "message"),
    [
        ("nonsense", "Invalid keyId 'nonsense'"),
        (
            "11111111-2222-3333-4444-555555555555",
            f"Key 'arn:aws:kms:us-east-1:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555' does not exist",
        ),
        (f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555", "Invalid arn eu-west-1"),
        ("alias/none", f"Alias arn:aws:kms:us-east-1:{ACCOUNT}:alias/none is not found."),
    ],
)
def test_a_key_that_is_not_there(kms: RunningKms, key_id: str, message: str) -> None:
    """NotFoundException in the recorded words (kms.md §2.3)."""
    with refused("NotFoundException") as error:
        kms.admin.describe_key(KeyId=key_id)
    assert error["message"] == message


@pytest.mark.parametrize("name", ["key/11111111-2222-3333-4444-555555555555", "alias/none", "key/nonsense"])
def test_a_key_of_another_account(kms: RunningKms, name: str) -> None:
    """AccessDeniedException, whatever there may be (kms.md §2.3)."""
    arn = f"arn:aws:kms:us-east-1:444455556666:{name}"
    with refused("AccessDeniedException") as error:
        kms.admin.describe_key(KeyId=arn)
    assert f"is not authorized to perform: kms:DescribeKey on resource: {arn} because" in error["message"]


def test_states(kms: RunningKms, key: str) -> None:
    """Disabled and pending deletion refuse use; cancelling brings a key back disabled."""
    arn = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{key}"
    kms.admin.disable_key(KeyId=key)
    with refused("DisabledException") as error:
        kms.admin.encrypt(KeyId=key, Plaintext=b"x")
    assert error["message"] == f"{arn} is disabled."
    with refused("KMSInvalidStateException"):
        kms.admin.cancel_key_deletion(KeyId=key)
    with refused("ValidationException"):
        kms.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=6)
    planned = kms.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    assert (planned["KeyState"], planned["PendingWindowInDays"], planned["KeyId"]) == ("PendingDeletion", 7, arn)
    with refused("KMSInvalidStateException") as error:
        kms.admin.enable_key(KeyId=key)
    assert error["message"] == f"{arn} is pending deletion."
    assert "DeletionDate" in kms.admin.describe_key(KeyId=key)["KeyMetadata"]
    kms.admin.cancel_key_deletion(KeyId=key)
    assert kms.admin.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled"
    kms.admin.enable_key(KeyId=key)
    kms.admin.encrypt(KeyId=key, Plaintext=b"x")


def test_a_dry_run_never_succeeds(kms: RunningKms, key: str) -> None:
    """The ordinary refusal when it would fail, DryRunOperationException when it would not (kms.md §2.5)."""
    with refused("DryRunOperationException"):
        kms.admin.encrypt(KeyId=key, Plaintext=b"x", DryRun=True)
    with refused("AccessDeniedException"):
        kms.app.encrypt(KeyId=key, Plaintext=b"x", DryRun=True)


def test_policies_decide(kms: RunningKms, key: str) -> None:
    """The application's user gets what the key policy gives it, at once and no longer than that."""
    with refused("AccessDeniedException") as error:
        kms.app.encrypt(KeyId=key, Plaintext=b"x")
    assert "because no identity-based policy allows the kms:Encrypt action" in error["message"]
    policy = json.loads(kms.admin.get_key_policy(KeyId=key)["Policy"])
    assert policy["Statement"][0]["Sid"] == "Enable IAM User Permissions"
    mine = {"Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Action": "kms:Encrypt", "Resource": "*"}
    changed = json.dumps(policy | {"Statement": [*policy["Statement"], mine]})
    kms.admin.put_key_policy(KeyId=key, PolicyName="default", Policy=changed)
    assert kms.admin.get_key_policy(KeyId=key)["Policy"] == changed
    sealed = kms.app.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    with refused("AccessDeniedException"):
        kms.app.decrypt(CiphertextBlob=sealed)
    kms.admin.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(policy))
    with refused("AccessDeniedException"):
        kms.app.encrypt(KeyId=key, Plaintext=b"x")


def test_nobody_locks_himself_out_by_mistake(kms: RunningKms, key: str) -> None:
    """The safety check refuses, the bypass insists (kms.md §8.7)."""
    statement = {"Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Action": "kms:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    with refused("MalformedPolicyDocumentException") as error:
        kms.admin.put_key_policy(KeyId=key, Policy=policy)
    assert "will not allow you to update the key policy" in error["message"]
    with refused("MalformedPolicyDocumentException"):
        kms.admin.create_key(Policy=policy)
    kms.admin.put_key_policy(KeyId=key, Policy=policy, BypassPolicyLockoutSafetyCheck=True)
    with refused("AccessDeniedException"):
        kms.admin.describe_key(KeyId=key)
    kms.app.describe_key(KeyId=key)


def test_nobody_is_locked_out_by_a_tag(kms: RunningKms) -> None:
    """The safety check sees what the next PutKeyPolicy will see, the key's tags too."""
    here = {"Action": "kms:*", "Resource": "*"}
    condition = {"StringEquals": {"aws:ResourceTag/locked": "yes"}}
    deny = {"Effect": "Deny", "Action": "kms:PutKeyPolicy", "Resource": "*", "Condition": condition}
    own = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **here}, deny]})
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, **here}]}
    with contextlib.closing(open_store(kms.config.store, kms.config.root_key)) as store:
        tagger = client(kms.url, add_user(store, "tagger", policies=[own]))
    with refused("MalformedPolicyDocumentException"):
        tagger.create_key(Policy=json.dumps(policy), Tags=[{"TagKey": "locked", "TagValue": "yes"}])
    tagger.create_key(Policy=json.dumps(policy), Tags=[{"TagKey": "locked", "TagValue": "no"}])


def test_a_policy_names_users_that_exist(kms: RunningKms, key: str) -> None:
    """A user that is not there is a typing error, and refused (kms.md §8.6)."""
    named = {"AWS": f"arn:aws:iam::{ACCOUNT}:user/nobody"}
    statements = [
        {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": "kms:*", "Resource": "*"},
        {"Effect": "Allow", "Principal": named, "Action": "kms:Decrypt", "Resource": "*"},
    ]
    with refused("MalformedPolicyDocumentException") as error:
        kms.admin.put_key_policy(KeyId=key, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    assert error["message"] == "Policy contains a statement with one or more invalid principals."


def test_lists_have_pages(kms: RunningKms) -> None:
    """ListKeys pages through everything once; a marker of one's own making is refused."""
    made = {kms.admin.create_key()["KeyMetadata"]["KeyId"] for _ in range(5)}
    pages = list(kms.admin.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 2}))
    listed = [entry["KeyId"] for page in pages for entry in page["Keys"]]
    assert len(listed) == len(set(listed))
    assert made <= set(listed)
    with refused("InvalidMarkerException"):
        kms.admin.list_keys(Marker="AAAA")


def test_operations_that_are_not_served_say_so(kms: RunningKms) -> None:
    """Known to the model: UnsupportedOperationException; kinds of keys too."""
    with refused("UnsupportedOperationException"):
        kms.admin.describe_custom_key_stores()
    with refused("UnsupportedOperationException"):
        kms.admin.create_key(KeySpec="SM2", KeyUsage="SIGN_VERIFY")
    with refused("UnsupportedOperationException"):
        kms.admin.create_key(Origin="EXTERNAL_KEY_STORE")


def test_only_signed_requests_are_heard(kms: RunningKms) -> None:
    """A wrong secret, an unknown key, no signature."""
    with refused("InvalidSignatureException"):
        client(kms.url, kms.admin_user, secret="wrong").list_keys()
    nobody = type(kms.admin_user)("arn", "AKIANOBODY", "secret")
    with refused("UnrecognizedClientException"):
        client(kms.url, nobody).list_keys()
    status, body, headers = post(kms, b"{}", {"X-Amz-Target": "TrentService.ListKeys"})
    assert (status, body["__type"]) == (400, "MissingAuthenticationTokenException")
    assert headers["Content-Type"] == "application/x-amz-json-1.1"
    assert headers["Cache-Control"] == "no-store"
    assert headers["x-amzn-RequestId"]
    assert headers["Date"]


def test_what_is_not_a_request_of_this_service(kms: RunningKms) -> None:
    """Other paths, other methods, and bodies over 1 MiB."""
    assert post(kms, b"{}", {}, path="/x")[1]["__type"] == "UnknownOperationException"
    assert post(kms, b"{}", {}, method="PUT")[1]["__type"] == "UnknownOperationException"
    status, body, _ = post(kms, bytes((1 << 20) + 1), {})
    assert (status, body["__type"]) == (413, "RequestEntityTooLargeException")


def post(
    kms: RunningKms, body: bytes, headers: dict[str, str], *, path: str = "/", method: str = "POST"
) -> tuple[int, dict[str, Any], Any]:
    host, port = kms.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers


def test_answers_are_sent_at_once(kms: RunningKms) -> None:
    """Fifty answers on one connection take no fifty times 40 ms: TCP_NODELAY is set."""
    host, port = kms.url.removeprefix("http://").split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:

        def fifty() -> float:
            started = time.monotonic()
            for _ in range(50):
                connection.request("GET", "/ping")
                assert json.loads(connection.getresponse().read()) == {"status": "healthy"}
            return time.monotonic() - started

        assert any(fifty() < 1.5 for _ in range(10))  # once, on a machine that has more to do


def test_every_call_is_on_the_record(kms: RunningKms, key: str) -> None:
    """Who, what, with which outcome and why; no secret; an unbroken chain."""
    kms.admin.encrypt(KeyId=key, Plaintext=b"a plaintext that must not be logged", EncryptionContext={"app": "demo"})
    with refused("AccessDeniedException"):
        kms.app.describe_key(KeyId=key)
    encrypted, denied = kms.records()[-2:]
    assert (encrypted["eventName"], encrypted["userIdentity"]["arn"]) == ("Encrypt", kms.admin_user.arn)
    assert encrypted["requestParameters"] == {"keyId": key, "encryptionContext": {"app": "demo"}}
    assert encrypted["resources"][0]["ARN"].endswith(key)
    assert encrypted["additionalEventData"]["decision"]["allowed"] is True
    assert (denied["eventName"], denied["errorCode"]) == ("DescribeKey", "AccessDeniedException")
    assert denied["additionalEventData"]["decision"]["why"] == "no identity policy allows"
    log = kms.config.audit.read_bytes()
    assert b"must not be logged" not in log
    assert base64.b64encode(b"a plaintext that must not be logged") not in log
    lines = log.splitlines(keepends=True)
    assert inspect_log(lines).records == len(lines)
    for broken in (lines[1:], lines[:1] + lines[2:], [lines[1], lines[0], *lines[2:]]):
        with pytest.raises(ValueError, match="record"):
            inspect_log(broken)


def test_no_secret_is_in_the_files(kms: RunningKms, key: str) -> None:
    """Neither key material nor users' secrets are in database, log or audit file, raw or encoded."""
    with contextlib.closing(open_store(kms.config.store, kms.config.root_key)) as store:
        found = store.key("us-east-1", key)
        assert found is not None
        material = store.material(found, found.material_id)
        assert material is not None
    secret = kms.admin_user.secret_access_key.encode()
    forms = [material, material.hex().encode(), base64.b64encode(material), secret]
    for file in kms.config.audit.parent.glob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(form in data for form in forms), file.name


def test_a_store_without_its_root_key_does_not_open(tmp_path: Path) -> None:
    """Missing, wrong and readable root keys are refused, and never replaced (kms.md §25)."""
    url, root = f"sqlite:///{tmp_path}/kms.sqlite", tmp_path / "root.key"
    open_store(url, root).close()
    assert root.stat().st_mode & 0o777 == 0o600
    good = root.read_text()
    root.unlink()
    with pytest.raises(UsageError, match="missing"):
        open_store(url, root)
    assert not root.exists()
    root.write_text("11" * 32)
    root.chmod(0o600)
    with pytest.raises(UsageError, match="not the root key of this store"):
        open_store(url, root)
    root.write_text("not hexadecimal")
    with pytest.raises(UsageError, match="is not a root key"):
        open_store(url, root)
    root.write_text(good)
    root.chmod(0o644)
    with pytest.raises(UsageError, match="can be read by others"):
        open_store(url, root)
    root.chmod(0o600)
    with pytest.raises(UsageError, match="belongs to account"):
        open_store(url, root, account="999999999999")
    with pytest.raises(UsageError, match="not known"):
        open_store("mysql://x", root)


def test_a_deleted_key_is_gone_from_the_files(tmp_path: Path) -> None:
    """After the window the wrapped material is in no file of the store."""
    with running(config(tmp_path)) as service:
        key = service.admin.create_key()["KeyMetadata"]["KeyId"]
        service.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
        sealed = sqlite3.connect(tmp_path / "kms.sqlite").execute("SELECT wrapped FROM materials").fetchone()[0]
    with contextlib.closing(open_store(service.config.store, service.config.root_key)) as store:
        assert store.purge(time.time()) == []
        assert store.purge(time.time() + 8 * 86400) == [("us-east-1", key)]
        assert store.family(key) == []
        store.sweep()
        assert all(sealed not in file.read_bytes() for file in tmp_path.glob("kms.sqlite*"))


def test_users_come_and_go(tmp_path: Path) -> None:
    """Names are unique; a removed user's key stops working at once, without a restart."""
    with running(config(tmp_path)) as service:
        service.admin.list_keys()
        with contextlib.closing(open_store(service.config.store, service.config.root_key)) as store:
            with pytest.raises(UsageError, match="already"):
                add_user(store, "admin0")
            with pytest.raises(UsageError, match="not a user name"):
                add_user(store, "a b")
            assert [(user["UserName"], user["Admin"]) for user in list_users(store)] == [
                ("admin0", True),
                ("app0", False),
            ]
            remove_user(store, "admin0")
            with pytest.raises(UsageError, match="no user"):
                remove_user(store, "admin0")
        with refused("UnrecognizedClientException"):
            service.admin.list_keys()


def test_the_last_use_of_a_key(tmp_path: Path) -> None:
    """Nothing at first; then operation and time, with the ids of the record; it outlives the service."""
    with running(config(tmp_path)) as service:
        key = service.admin.create_key()["KeyMetadata"]["KeyId"]
        other = service.admin.create_key()["KeyMetadata"]["KeyId"]
        before = service.admin.get_key_last_usage(KeyId=key)
        assert before["KeyLastUsage"] == {}
        assert before["TrackingStartDate"] == before["KeyCreationDate"]
        with refused("AccessDeniedException"):
            service.app.encrypt(KeyId=key, Plaintext=b"x")
        assert service.admin.get_key_last_usage(KeyId=key)["KeyLastUsage"] == {}
        sealed = service.admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
        used = service.admin.get_key_last_usage(KeyId=key)["KeyLastUsage"]
        record = next(r for r in reversed(service.records()) if r["eventName"] == "Encrypt")
        assert used["Operation"] == "Encrypt"
        assert (used["CloudTrailEventId"], used["KmsRequestId"]) == (record["eventID"], record["requestID"])
        service.admin.re_encrypt(CiphertextBlob=sealed, DestinationKeyId=other)
    with running(service.config) as again:
        for name in (key, other):
            assert again.admin.get_key_last_usage(KeyId=name)["KeyLastUsage"]["Operation"] == "ReEncrypt"


def test_policies_see_how_long_a_key_was_idle(kms: RunningKms, key: str) -> None:
    """kms:TrailingDaysWithoutKeyUsage keeps a key that is in use from being disabled."""
    root = {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": "kms:*", "Resource": "*"}
    condition = {"NumericLessThan": {"kms:TrailingDaysWithoutKeyUsage": "30"}}
    actions = ["kms:DisableKey", "kms:ScheduleKeyDeletion"]
    deny = {"Effect": "Deny", "Principal": "*", "Action": actions, "Resource": "*", "Condition": condition}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [root, deny]})
    kms.admin.put_key_policy(KeyId=key, Policy=policy)
    for operation in (kms.admin.disable_key, kms.admin.schedule_key_deletion):
        with refused("AccessDeniedException"):
            operation(KeyId=key)
    kms.admin.put_key_policy(KeyId=key, Policy=policy.replace('"30"', '"0"'))
    kms.admin.disable_key(KeyId=key)
