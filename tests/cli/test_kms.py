"""``alcove kms`` as a person runs it: a server, its users, roles, policies, root key and backups."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from pkcs11 import Attribute, KeyType
from tests.cli.state_machine import BIN, PASSPHRASE, StateMachine
from tests.unit.image.archives import write
from tests.unit.kms.authority_harness import GOOD, make_attester
from tests.unit.pkcs11.softhsm import make_softhsm

from alcove.attestation.authority import Authority

pytestmark = pytest.mark.slow
ACCOUNT = "111122223333"


class Machine(StateMachine):
    """The KMS of a machine."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "kms")

    @property
    def kms(self) -> Path:
        """Where the store is."""
        return self.place

    def file(self, name: str, value: object) -> Path:
        """A JSON file."""
        path = self.directory / name
        path.write_text(json.dumps(value))
        return path

    @contextlib.contextmanager
    def serving(self, *arguments: object) -> Iterator[str]:
        """A server until the block ends; gives its URL."""
        command = [BIN / "alcove", "kms", "serve", "--listen", "127.0.0.1:0", *map(str, arguments)]
        process = subprocess.Popen(command, cwd=self.directory, env=self.environment, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr
            line = process.stderr.readline()
            assert line.startswith("listening on "), line
            self.process = process
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 0


def client(url: str, user: dict[str, str], service: str = "kms", *, region: str = "us-east-1") -> Any:
    """boto3 as a user."""
    return boto3.client(
        service,
        endpoint_url=url,
        region_name=region,
        aws_access_key_id=user["AccessKeyId"],
        aws_secret_access_key=user["SecretAccessKey"],
        config=Config(retries={"max_attempts": 0}),
    )


def refusal(call: Any, **arguments: Any) -> str:
    """The code of the error that a call gets, or the empty text."""
    try:
        call(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A store with one administrator, for tests that change nothing."""
    found = Machine(tmp_path_factory.mktemp("furnished"))
    found.out("user", "add", "boss", "--admin")
    return found


def test_users_come_and_go_beside_a_running_server(machine: Machine) -> None:
    """What the commands change is felt by the server's next answer."""
    boss = json.loads(machine.out("user", "add", "boss", "--admin", "--json"))
    assert set(boss) == {"UserArn", "AccessKeyId", "SecretAccessKey"}
    with machine.serving() as url:
        key = client(url, boss).create_key()["KeyMetadata"]["KeyId"]
        text = machine.out("user", "add", "app")
        app = dict(line.split(": ") for line in text.splitlines())
        assert refusal(client(url, app).encrypt, KeyId=key, Plaintext=b"x") == "AccessDeniedException"
        policy = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "kms:Encrypt", "Resource": "*"}}
        machine.out("user", "policy", "app", "--policy", machine.file("policy.json", policy))
        assert refusal(client(url, app).encrypt, KeyId=key, Plaintext=b"x") == ""
        assert json.loads(machine.out("user", "policy", "app")) == [policy]
        machine.out("user", "policy", "app", "--none")
        assert refusal(client(url, app).encrypt, KeyId=key, Plaintext=b"x") == "AccessDeniedException"
        machine.out("user", "remove", "app")
        assert refusal(client(url, app).list_keys) == "UnrecognizedClientException"


def test_access_keys_rotate(machine: Machine) -> None:
    """One key instead of another; or two for a while, and then the old one is revoked."""
    first = json.loads(machine.out("user", "add", "boss", "--admin", "--json"))
    with machine.serving() as url:
        second = json.loads(machine.out("user", "rotate", "boss", "--json"))
        assert refusal(client(url, first).list_keys) == "UnrecognizedClientException"
        third = json.loads(machine.out("user", "rotate", "boss", "--keep-old", "--json"))
        assert [refusal(client(url, user).list_keys) for user in (second, third)] == ["", ""]
        assert "2 access keys already" in machine.fails("user", "rotate", "boss", "--keep-old")
        machine.out("user", "revoke", "boss", second["AccessKeyId"])
        assert refusal(client(url, second).list_keys) == "UnrecognizedClientException"
        assert refusal(client(url, third).list_keys) == ""
    assert json.loads(machine.out("user", "list", "--json")) == [
        {
            "UserArn": f"arn:aws:iam::{ACCOUNT}:user/boss",
            "UserName": "boss",
            "Admin": True,
            "AccessKeyIds": [third["AccessKeyId"]],
            "Policies": 1,
        }
    ]


def test_secrets_are_shown_once(machine: Machine) -> None:
    """No later command prints a secret access key, and neither store nor log has it in clear."""
    made = json.loads(machine.out("user", "add", "boss", "--admin", "--json"))
    with machine.serving() as url:
        client(url, made).create_key()
    shown = machine.out("user", "list") + machine.out("user", "list", "--json") + machine.out("user", "policy", "boss")
    files = b"".join(path.read_bytes() for path in machine.kms.iterdir())
    assert made["SecretAccessKey"] not in shown
    assert made["SecretAccessKey"].encode() not in files
    assert made["AccessKeyId"].encode() in files


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("user", "add", "a b"), "not a user name"),
        (("user", "add", "boss"), "there is a user boss already"),
        (("user", "add", "new", "--policy", "none.json"), "cannot read `none.json`"),
        (("user", "add", "new", "--policy", "bad.json"), "the policy cannot be used: the policy is not JSON"),
        (("user", "remove", "nobody"), "there is no user nobody"),
        (("user", "rotate", "nobody"), "there is no user nobody"),
        (("user", "policy", "nobody"), "there is no user nobody"),
        (("user", "revoke", "boss", "AKIA2345ABCDEFGHIJKL"), "boss has no access key"),
        (("user", "list", "--store", "sqlite:////none/kms.sqlite"), "there is no store"),
        (("user", "list", "--store", "redis://x"), "is no store"),
        (("role", "add", "deploy", "--trust", "nobody"), "there is no user nobody"),
        (("role", "remove", "nothing"), "there is no role nothing"),
        (("root", "rewrap"), "say how"),
        (("root", "init"), "there is a store"),
        (("root", "rotate", "--new-passphrase-file", "x"), "goes with --protect"),
        (("root", "rewrap", "--protect"), "no terminal"),
        (("restore", "none"), "there is no file"),
    ],
)
def test_bad_input_is_one_line(furnished: Machine, arguments: tuple[str, ...], words: str) -> None:
    """And nothing is changed by it."""
    (furnished.directory / "bad.json").write_text("{")
    before = [(path.name, path.read_bytes()) for path in sorted(furnished.kms.glob("kms.*[ey]"))]
    done = furnished.run(*arguments)
    assert done.returncode not in {0, 2}
    assert words in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert [(path.name, path.read_bytes()) for path in sorted(furnished.kms.glob("kms.*[ey]"))] == before


def test_a_role_through_the_command_line(machine: Machine) -> None:
    """A trusted user assumes it, and has its policies."""
    app = json.loads(machine.out("user", "add", "app", "--json"))
    made = json.loads(machine.out("role", "add", "deploy", "--trust", "app", "--admin", "--json"))
    with machine.serving() as url:
        session = client(url, app, "sts").assume_role(RoleArn=made["RoleArn"], RoleSessionName="now")["Credentials"]
        keys = boto3.client(
            "kms", endpoint_url=url, region_name="us-east-1", aws_access_key_id=session["AccessKeyId"],
            aws_secret_access_key=session["SecretAccessKey"], aws_session_token=session["SessionToken"],
        )  # fmt: skip
        assert refusal(keys.create_key) == ""
        machine.out("role", "policy", "deploy", "--none")
        assert refusal(keys.create_key) == "AccessDeniedException"
        machine.out("role", "remove", "deploy")
        assert refusal(keys.create_key) == "UnrecognizedClientException"
    assert json.loads(machine.out("role", "list", "--json")) == []


def test_the_server_leaves_no_core(machine: Machine) -> None:
    """Its memory has keys: no core dump, and none of its files under /proc for others of the same user."""
    machine.out("user", "add", "boss", "--admin")
    with machine.serving():
        limits = Path(f"/proc/{machine.process.pid}/limits").read_text()
        assert re.search(r"Max core file size\s+0\s+0", limits)


def test_lint_of_files_and_keys(machine: Machine) -> None:
    """Exit status 0 without, 1 with warnings, 2 for what cannot be linted; the same for a key by id or alias."""
    boss = json.loads(machine.out("user", "add", "boss", "--admin", "--json"))
    with machine.serving() as url:
        key = client(url, boss).create_key()["KeyMetadata"]["KeyId"]
        client(url, boss).create_alias(AliasName="alias/app", TargetKeyId=key)
        grantee = f"arn:aws:iam::{ACCOUNT}:user/boss"
        client(url, boss).create_grant(KeyId=key, GranteePrincipal=grantee, Operations=["Decrypt"])
        done = machine.run("policy", "lint", "alias/app")
        assert done.returncode == 1
        assert "Enable IAM User Permissions: kms:Decrypt, " in done.stdout
        assert "[no-attestation]" in done.stdout
        parsed = json.loads(machine.run("policy", "lint", key, "--json").stdout)
        assert {warning["Code"] for warning in parsed["Warnings"]} == {
            "no-attestation", "reencrypt", "grant", "open-grant",
        }  # fmt: skip
        assert parsed["Administrators"] == [ACCOUNT]
    machine.file("bad.json", {"Statement": []})
    assert machine.run("policy", "lint", "bad.json").returncode == 1
    assert "no file" in machine.fails("policy", "lint", "none.json", status=2)
    assert "does not exist" in machine.fails("policy", "lint", "0" * 8 + "-0000-4000-8000-" + "0" * 12, status=2)


@pytest.mark.parametrize("flags", [(), ("--image",)])
def test_the_policy_for_an_image_locks_a_key_to_it(machine: Machine, flags: tuple[str, ...]) -> None:
    """Its policy is clean and can be put on a key; explain then says who may decrypt from where."""
    eif = write(machine.directory / "app.eif")
    described = subprocess.run(
        [BIN / "nitro-cli", "describe-eif", "--eif-path", eif], check=True, capture_output=True, text=True
    )
    pcrs = json.loads(described.stdout)["Measurements"]
    boss = json.loads(machine.out("user", "add", "boss", "--admin", "--json"))
    machine.out("user", "add", "app")
    policy = machine.out("policy", "for", eif, "--principal", f"arn:aws:iam::{ACCOUNT}:user/app", *flags)
    assert machine.out("policy", "lint", "-", given=policy) == ""
    with machine.serving() as url:
        key = client(url, boss).create_key(Policy=policy)["KeyMetadata"]["KeyId"]
        assert machine.out("policy", "lint", key) == ""
        asked = ("policy", "explain", "--user", "app", "--action", "kms:decrypt", "--key", key)
        refused = machine.run(*asked)
        assert refused.returncode == 1
        assert refused.stdout.startswith("refused: ")
        assert "no attestation document was given" in refused.stdout
        as_if = [word for index in (0, 1, 2) for word in ("--pcr", f"{index}={pcrs[f'PCR{index}']}")]
        assert machine.out(*asked, *as_if).startswith("allowed: ")
        other = machine.run(*asked, "--pcr", f"0={'ab' * 48}", "--json")
        found = json.loads(other.stdout)
        assert (other.returncode, found["Allowed"], found["Why"]) == (1, False, "an explicit deny in the key policy")
        assert [step["Verdict"] for step in found["Steps"]] == [
            "is about other actions", "its conditions are not met", "applies",
        ]  # fmt: skip
        assert machine.run("policy", "explain", "--user", "boss", *asked[4:], *as_if).returncode == 1


def test_explain_agrees_with_the_server(machine: Machine) -> None:
    """For identity policies, encryption contexts, roles and grants, the answer is the one that the server gives."""
    boss = json.loads(machine.out("user", "add", "boss", "--admin", "--json"))
    allow = {"Effect": "Allow", "Action": "kms:Encrypt", "Resource": "*"}
    condition = {"StringEquals": {"kms:EncryptionContext:app": "${aws:username}"}}
    policy = machine.file("p.json", {"Version": "2012-10-17", "Statement": [allow | {"Condition": condition}]})
    app = json.loads(machine.out("user", "add", "app", "--policy", policy, "--json"))
    with machine.serving() as url:
        key = client(url, boss).create_key()["KeyMetadata"]["KeyId"]
        for context in ({}, {"app": "app"}, {"app": "other"}, {"APP": "app"}):
            given = [word for name, value in context.items() for word in ("--context", f"{name}={value}")]
            asked = ("policy", "explain", "--user", "app", "--action", "Encrypt", "--key", key, *given)
            code = refusal(client(url, app).encrypt, KeyId=key, Plaintext=b"x", EncryptionContext=context)
            assert machine.run(*asked).returncode == (1 if code else 0)
        asked = ("policy", "explain", "--user", "app", "--action", "Decrypt", "--key", key)
        assert machine.run(*asked).returncode == 1
        grantee = f"arn:aws:iam::{ACCOUNT}:user/app"
        client(url, boss).create_grant(KeyId=key, GranteePrincipal=grantee, Operations=["Decrypt"])
        assert "a grant allows it" in machine.out(*asked)


def test_explain_takes_a_document(machine: Machine) -> None:
    """A genuine one brings its PCRs, however old; one of another root is an error."""
    machine.out("user", "add", "boss", "--admin")
    authority = Authority.open(machine.directory / "state" / "ca")
    document = make_attester(authority).document(
        GOOD, user_data=None, nonce=None, public_key=None, now=datetime.now(UTC) - timedelta(minutes=9)
    )
    (machine.directory / "doc.cbor").write_bytes(document)
    asked = ("policy", "explain", "--user", "boss", "--action", "kms:GenerateRandom", "--document", "doc.cbor")
    condition = {"StringEquals": {"kms:RecipientAttestation:PCR0": GOOD[0].hex()}}
    allow = {"Effect": "Allow", "Action": "kms:GenerateRandom", "Resource": "*", "Condition": condition}
    machine.out("user", "policy", "boss", "--file", machine.file("p.json", {"Statement": allow}))
    assert machine.out(*asked).startswith("allowed: ")
    assert machine.run(*asked[:-2]).returncode == 1
    assert "root" in machine.fails(*asked, "--root", "aws", status=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--user", "nobody", "--action", "kms:Decrypt"), "there is no user nobody"),
        (("--user", "boss", "--action", "kms:Decript"), "kms:Decript is no action"),
        (("--user", "boss", "--action", "kms:ReEncrypt"), "kms:ReEncryptFrom and kms:ReEncryptTo"),
        (("--principal", "boss", "--action", "kms:Decrypt"), "not the ARN of a principal"),
        (("--user", "boss", "--action", "kms:Decrypt", "--pcr", "32=ab"), "no register"),
        (("--user", "boss", "--action", "kms:Decrypt", "--pcr", "0=xy"), "not hexadecimal"),
        (("--user", "boss", "--action", "kms:Decrypt", "--context", "x"), "no new NAME=VALUE"),
        (("--user", "boss", "--action", "kms:Decrypt", "--key", "alias/none"), "is not found"),
    ],
)
def test_questions_that_make_no_sense(furnished: Machine, arguments: tuple[str, ...], words: str) -> None:
    """One line, and status 2: 1 is an answer."""
    assert words in furnished.fails("policy", "explain", *arguments, status=2)


def test_an_unsigned_image_has_no_signer(machine: Machine) -> None:
    """PCR8 is there only when an image is signed."""
    eif = write(machine.directory / "app.eif")
    assert "is not signed" in machine.fails("policy", "for", eif, "--signer")
    assert "not the ARN" in machine.fails("policy", "for", eif, "--principal", "app")
    assert machine.fails("policy", "for", machine.directory / "none.eif", status=19)


def test_a_passphrase_before_the_first_start(machine: Machine) -> None:
    """The server starts with the passphrase, from a file or the environment, and not without."""
    (machine.directory / "passphrase").write_text(PASSPHRASE + "\n")
    fingerprint = machine.out("root", "init", "--protect", "--new-passphrase-file", "passphrase").strip()
    given = ("--passphrase-file", "passphrase")
    boss = json.loads(machine.out("user", "add", "boss", "--admin", "--json", *given))
    with machine.serving(*given) as url:
        assert refusal(client(url, boss).create_key) == ""
    assert "no terminal" in machine.fails("serve", "--listen", "127.0.0.1:0")
    machine.environment["ALCOVE_KMS_PASSPHRASE"] = "another passphrase"
    assert "does not open" in machine.fails("serve", "--listen", "127.0.0.1:0")
    machine.environment["ALCOVE_KMS_PASSPHRASE"] = PASSPHRASE
    shown = json.loads(machine.out("root", "show", "--json"))
    assert (shown["Kind"], shown["Fingerprint"]) == ("passphrase", fingerprint)


def test_a_passphrase_is_typed(machine: Machine) -> None:
    """At a terminal it is asked for, twice when it is new, and never echoed."""
    machine.out("user", "add", "boss")
    text = typed(machine, ["root", "rewrap", "--protect"], [PASSPHRASE, PASSPHRASE])
    assert PASSPHRASE not in text
    assert "boss" in typed(machine, ["user", "list"], [PASSPHRASE])
    assert "two passphrases differ" in typed(machine, ["root", "rewrap", "--protect"], ["x" * 20, "y" * 20], old=True)


def typed(machine: Machine, arguments: list[str], lines: list[str], *, old: bool = False) -> str:
    """What a terminal shows while these lines are typed at its prompts."""
    lines = [PASSPHRASE, *lines] if old else lines
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(machine.directory)
        os.execve(BIN / "alcove", ["alcove", "kms", *arguments], machine.environment)  # noqa: S606 - that is the point
    text, seen, waiting, end = "", 0, list(lines), time.monotonic() + 60
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            text += os.read(terminal, 4096).decode()
        except OSError:
            break
        if waiting and text[seen:].endswith(": "):
            os.write(terminal, waiting.pop(0).encode() + b"\n")
            seen = len(text)
    else:
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(terminal)
    return text


def test_a_token_before_the_first_start(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the token's PIN the server starts, and decrypts after a rotation under the same token."""
    hsm = make_softhsm(machine.directory / "hsm", monkeypatch)
    with hsm.session() as session:
        template = {Attribute.ENCRYPT: True, Attribute.DECRYPT: True}
        session.generate_key(KeyType.AES, 256, store=True, label="kms", template=template)
    hsm.done()
    machine.environment |= hsm.environment
    first = machine.out("root", "init", "--pkcs11", "pkcs11:token=hsm;object=kms").strip()
    boss = json.loads(machine.out("user", "add", "boss", "--admin", "--json"))
    with machine.serving() as url:
        key = client(url, boss).create_key()["KeyMetadata"]["KeyId"]
        sealed = client(url, boss).encrypt(KeyId=key, Plaintext=b"kept")["CiphertextBlob"]
    second = machine.out("root", "rotate").strip()
    assert first != second
    assert json.loads(machine.out("root", "show", "--json"))["Kind"] == "pkcs11"
    with machine.serving() as url:
        assert client(url, boss).decrypt(CiphertextBlob=sealed)["Plaintext"] == b"kept"
    del machine.environment["ALCOVE_PKCS11_PIN"]
    assert "needs a PIN" in machine.fails("serve", "--listen", "127.0.0.1:0")


def test_a_root_key_in_the_environment(machine: Machine) -> None:
    """As a container has it: no file is made, and another key is refused."""
    machine.environment["ALCOVE_KMS_ROOT_KEY"] = os.urandom(32).hex()
    boss = json.loads(machine.out("user", "add", "boss", "--admin", "--json"))
    with machine.serving() as url:
        assert refusal(client(url, boss).create_key) == ""
    assert not (machine.kms / "kms.root-key").exists()
    machine.environment["ALCOVE_KMS_ROOT_KEY"] = os.urandom(32).hex()
    assert "is not the root key of this store" in machine.fails("serve", "--listen", "127.0.0.1:0")
    del machine.environment["ALCOVE_KMS_ROOT_KEY"]
    assert "is missing" in machine.fails("serve", "--listen", "127.0.0.1:0")


def test_a_backup_is_a_store_elsewhere(machine: Machine) -> None:
    """Taken from a running server; restored beside its root key only, and over nothing."""
    boss = json.loads(machine.out("user", "add", "boss", "--admin", "--json"))
    with machine.serving() as url:
        key = client(url, boss).create_key()["KeyMetadata"]["KeyId"]
        sealed = client(url, boss).encrypt(KeyId=key, Plaintext=b"kept")["CiphertextBlob"]
        made = json.loads(machine.out("backup", "kms.backup", "--json"))
        assert "in use" in machine.fails("root", "rotate")
    assert "exists already" in machine.fails("backup", "kms.backup")
    assert "exists already" in machine.fails("restore", "kms.backup")
    there = machine.directory / "there"
    store = ("--store", f"sqlite:///{there}/kms.sqlite")
    done = machine.run("restore", "kms.backup", "--json", *store)
    assert (done.returncode, json.loads(done.stdout)) == (0, made)
    assert f"needs the root key {made['RootKeyFingerprint']}" in done.stderr
    assert "is missing" in machine.fails("serve", "--listen", "127.0.0.1:0", *store)
    (machine.kms / "kms.root-key").rename(there / "kms.root-key")
    with machine.serving(*store) as url:
        assert client(url, boss).decrypt(CiphertextBlob=sealed)["Plaintext"] == b"kept"
    machine.out("root", "rotate", *store)
    (there / "kms.sqlite").unlink()
    assert made["RootKeyFingerprint"] in machine.fails("restore", "kms.backup", *store)


@pytest.mark.parametrize(
    "words",
    [
        "serve", "user add", "user list", "user remove", "user policy", "user rotate", "user revoke", "role add",
        "role list", "role remove", "role policy", "policy lint", "policy explain", "policy for", "root init",
        "root show", "root rewrap", "root rotate", "backup", "restore", "audit verify",
    ],
)  # fmt: skip
def test_every_command_has_help(furnished: Machine, words: str) -> None:
    """One sentence at least."""
    assert len(furnished.out(*words.split(), "--help").splitlines()) > 3
