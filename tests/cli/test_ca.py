"""``alcove ca`` as a person runs it: a root, its chain, a fleet, another root, revocation."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.cli.state_machine import BIN, PASSPHRASE, StateMachine
from tests.unit.pkcs11.softhsm import PIN, make_softhsm

from alcove.attestation.attester import Attester
from alcove.attestation.authority import Authority

pytestmark = pytest.mark.slow

ALCOVE = BIN / "alcove"


class Machine(StateMachine):
    """The authority of a machine."""

    def __init__(self, directory: Path, **environment: str) -> None:
        super().__init__(directory, "ca", **environment)

    @property
    def ca(self) -> Path:
        """The authority's directory."""
        return self.place

    def shown(self) -> dict[str, object]:
        """What `ca show --json` says."""
        shown: dict[str, object] = json.loads(self.out("show", "--json"))
        return shown


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "m")


def test_a_root_is_made_shown_and_exported(machine: Machine) -> None:
    """Fingerprint on standard output, a tree for people, the same facts as JSON, PEM for verifiers."""
    assert "no root" in machine.fails("show")
    assert "no root" in machine.fails("export")
    fingerprint = machine.out("init").strip()
    assert "already" in machine.fails("init")
    machine.out("rotate")
    text = machine.out("show")
    assert f"sha256 {fingerprint}" in text
    assert [line.split()[-2] for line in text.splitlines() if "aws.nitro-enclaves" in line] == [
        "root", "regional", "zonal", "instance",
    ]  # fmt: skip
    shown = machine.shown()
    assert shown["Root"]["SHA256"] == fingerprint  # type: ignore[index]
    assert shown["Notices"] == []
    pem = machine.out("export")
    assert pem == (machine.ca / "root.pem").read_text()
    assert "PRIVATE" not in pem
    machine.out("export", "--output", "root.pem")
    assert (machine.directory / "root.pem").read_text() == pem
    assert "--output" in machine.fails("export", "--all")
    machine.out("crl")
    machine.out("export", "--all", "--output", "everything")
    files = {path.relative_to(machine.directory / "everything") for path in machine.directory.rglob("everything/*/*")}
    assert Path("roots") / f"{fingerprint}.pem" in files
    assert len(files) == 5
    assert not any(b"PRIVATE" in path.read_bytes() for path in machine.directory.rglob("everything/*/*"))


def test_the_passphrase_is_never_an_argument(machine: Machine) -> None:
    """A file or the environment; without a terminal one line that says so; no flag takes it."""
    (machine.directory / "pass").write_text(PASSPHRASE + "\n")
    assert "--passphrase-file" in machine.fails("init", "--protect")
    assert not (machine.ca / "root.pem").exists()
    machine.out("init", "--key-file", "root-key.pem", "--passphrase-file", "pass")
    assert "exists already" in Machine(machine.directory, ALCOVE_STATE=str(machine.directory / "other")).fails(
        "init", "--key-file", "root-key.pem", "--passphrase-file", "pass"
    )
    assert "--passphrase-file" in machine.fails("rotate")
    (machine.directory / "wrong").write_text("something else\n")
    assert "passphrase is wrong" in machine.fails("rotate", "--passphrase-file", "wrong")
    assert not (machine.ca / "us-east-1").exists()
    machine.out("rotate", "--passphrase-file", "pass")
    Machine(machine.directory, ALCOVE_CA_PASSPHRASE=PASSPHRASE).out("rotate")
    machine.out("rotate", "--level", "zonal")
    assert machine.shown()["Root"]["Key"]["Kind"] == "passphrase-protected file"  # type: ignore[index]


def test_the_passphrase_is_asked_for_on_a_terminal(machine: Machine) -> None:
    """Twice for a new key, once to use it, and not echoed; two that differ make no root."""
    status, said = on_terminal(machine, ["init", "--protect"], [PASSPHRASE, PASSPHRASE + "x"])
    assert status != 0
    assert "differ" in said
    assert not (machine.ca / "root.pem").exists()
    status, said = on_terminal(machine, ["init", "--protect"], [PASSPHRASE, PASSPHRASE])
    assert status == 0, said
    assert PASSPHRASE not in said
    status, said = on_terminal(machine, ["rotate"], [PASSPHRASE])
    assert status == 0, said
    assert (machine.ca / "us-east-1" / "regional.pem").exists()


@pytest.mark.parametrize(("key", "status"), [("\x03", 130), ("\x04", 1)], ids=["Ctrl-C", "Ctrl-D"])
def test_whoever_types_no_passphrase_makes_no_root(machine: Machine, key: str, status: int) -> None:
    """At the first prompt and at the second; no traceback, and no file but the lock."""
    for answers in ([key], [PASSPHRASE, key]):
        found, said = on_terminal(machine, ["init", "--protect"], answers)
        assert found == status, said
        assert "Traceback" not in said
        assert not machine.ca.exists() or [path.name for path in machine.ca.iterdir()] == [".lock"]


def on_terminal(machine: Machine, arguments: list[str], answers: list[str]) -> tuple[int, str]:
    """Run `alcove ca` on a terminal, typing each answer after a prompt."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in the background ignore it
        os.chdir(machine.directory)
        os.execve(ALCOVE, [str(ALCOVE), "ca", *arguments], machine.environment)  # noqa: S606
    said, waiting, until = b"", list(answers), time.monotonic() + 60
    while time.monotonic() < until:
        if not select.select([terminal], [], [], 0.5)[0]:
            continue
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # the other end has gone
            break
        if not chunk:
            break
        said += chunk
        if waiting and chunk.rstrip(b" ").endswith(b":"):
            os.write(terminal, waiting.pop(0).encode() + b"\n")  # a control character acts before the line's end
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode()


def test_a_fleet_is_enrolled_by_three_commands(machine: Machine, tmp_path: Path) -> None:
    """Request, answer, install, through pipes; then both have one root, and a document of either needs only that."""
    machine.out("init")
    root = machine.shown()["Root"]["SHA256"]  # type: ignore[index]
    parent = Machine(tmp_path / "p", AWS_REGION="eu-west-1")
    request = parent.out("request")
    answer = machine.out("issue-parent", "web-1", "--csr", "-", given=request)
    assert parent.out("install", "-", given=answer).strip() == root
    parent.out("rotate", "--level", "zonal")
    assert "not on this machine" in parent.fails("rotate")
    assert "has not asked" in parent.fails("install", "-", given=answer)
    assert [row["Parent"] for row in machine.shown()["Parents"]] == ["web-1"]  # type: ignore[attr-defined]
    assert "web-1: regional" in machine.out("show")
    for given in ("", "rubbish", answer):
        assert "request" in machine.fails("issue-parent", "web-2", "--csr", "-", given=given)
    assert "cannot read" in machine.fails("issue-parent", "web-2", "--csr", "absent", status=19)
    own = Machine(tmp_path / "own")
    own.out("init")
    answer = machine.out("issue-parent", "web-3", "--level", "instance", "--csr", "-", given=own.out("request"))
    assert "--replace-root" in own.fails("install", "-", given=answer)
    assert own.out("install", "--replace-root", "-", given=answer).strip() == root


def test_a_root_is_changed_without_a_gap(machine: Machine) -> None:
    """Made, given out, changed to, and the former one forgotten; nothing is signed by two at once."""
    old = machine.out("init").strip()
    machine.out("rotate")
    assert "--root` makes one" in machine.fails("rotate", "--switch")
    new = machine.out("rotate", "--root").strip()
    machine.out("export", "--all", "--output", "out")
    assert {path.stem for path in (machine.directory / "out" / "roots").iterdir()} == {old, new}
    assert machine.shown()["Root"]["SHA256"] == old  # type: ignore[index]
    machine.out("rotate", "--switch")
    shown = machine.shown()
    assert shown["Root"]["SHA256"] == new  # type: ignore[index]
    assert all(row["Current"] for row in shown["Chains"][0]["Certificates"])  # type: ignore[index]
    assert [row["SHA256"] for row in shown["FormerRoots"]] == [old]  # type: ignore[attr-defined]
    machine.out("forget", old[:16])
    assert machine.shown()["FormerRoots"] == []
    assert "names no former root" in machine.fails("forget", old)


def test_what_is_about_a_new_root_needs_one(machine: Machine) -> None:
    """`rotate` with a flag that only `rotate --root` can heed changes nothing, and says so."""
    machine.out("init")
    machine.out("rotate")
    before = machine.shown()
    for flags in (("--key-file", "new.pem"), ("--protect",), ("--years", "5"), ("--switch", "--organization", "Other")):
        assert "goes with --root" in machine.fails("rotate", *flags)
    assert machine.shown() == before


def test_damaged_files_are_named_in_one_line(machine: Machine) -> None:
    """Whatever a file of the directory holds, a command that needs it says which one, in our words."""
    machine.out("init")
    machine.out("rotate")
    asked = machine.out("request")
    machine.out("issue-parent", "web-1", "--csr", "-", given=asked)
    machine.out("revoke", "web-1")
    for name, commands in (
        ("parents/web-1.pem", ("show", "revoke web-1")),
        ("us-east-1/request-key.pem", ("request", "install -")),
        (next(machine.ca.glob("crl/*")).relative_to(machine.ca), ("show", "crl")),
        ("us-east-1/zonal.pem", ("show", "export --all --output x")),
        ("root-key.pem", ("show", "rotate")),
        ("root.pem", ("show", "rotate", "crl")),
    ):
        path = machine.ca / name
        kept = path.read_bytes()
        path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        given = "" if "request-key" not in str(name) else machine.out("issue-parent", "x", "--csr", "-", given=asked)
        for command in commands:
            said = machine.fails(*command.split(), given=given)
            assert str(path) in said
            assert "cryptography.io" not in said
        path.write_bytes(kept)
    machine.out("show")


def test_a_better_kept_root_is_not_followed_by_a_worse_kept_one(machine: Machine) -> None:
    """Where the old key has a passphrase, the new one's place must be said; the change needs its passphrase."""
    (machine.directory / "pass").write_text(PASSPHRASE)
    machine.out("init", "--protect", "--passphrase-file", "pass")
    assert "--protect" in machine.fails("rotate", "--root")
    machine.out("rotate", "--root", "--protect", "--passphrase-file", "pass")
    old = machine.shown()["Root"]["SHA256"]  # type: ignore[index]
    (machine.directory / "wrong").write_text("something else")
    assert "passphrase is wrong" in machine.fails("rotate", "--switch", "--passphrase-file", "wrong")
    assert machine.shown()["Root"]["SHA256"] == old  # type: ignore[index]
    machine.out("rotate", "--switch", "--passphrase-file", "pass")
    machine.out("rotate", "--passphrase-file", "pass")


def test_what_is_revoked_is_on_the_list(machine: Machine, tmp_path: Path) -> None:
    """By name, by serial number and by file; the lists are printed, or written as files."""
    machine.out("init")
    machine.out("rotate")
    parent = Machine(tmp_path / "p")
    machine.out("issue-parent", "web-1", "--csr", "-", given=parent.out("request"))
    serial = machine.shown()["Parents"][0]["Serial"]  # type: ignore[index]
    path = machine.out("revoke", "web-1", "--reason", "key-compromise").strip()
    zonal = machine.shown()["Chains"][0]["Certificates"][1]["Serial"]  # type: ignore[index]
    machine.out("revoke", zonal)
    machine.out("revoke", machine.ca / "us-east-1" / "regional.pem", "--days", "2")
    lists = machine.shown()["RevocationLists"]
    revoked = {serial for entry in lists for serial in entry["Revoked"]}  # type: ignore[attr-defined]
    assert {serial, zonal} < revoked
    assert len(revoked) == 3
    text = subprocess.run(
        ["openssl", "crl", "-noout", "-text", "-in", path], capture_output=True, text=True, check=True
    )
    assert serial.upper() in text.stdout
    assert "Key Compromise" in text.stdout
    assert machine.out("crl").count("BEGIN X509 CRL") == 2
    machine.out("crl", "--output", "lists")
    assert len(list((machine.directory / "lists").glob("*.crl"))) == 2
    for arguments in (("revoke", "0" * 16), ("revoke", "absent"), ("crl", "--days", "0"), ("revoke", "x", "--days=-1")):
        machine.fails(*arguments)


def test_a_document_of_a_revoked_parent_is_not_valid(machine: Machine, tmp_path: Path) -> None:
    """With the list `attest verify` ends with status 3 and the reason; without it, or for another parent, with 0."""
    machine.out("init")
    documents = {}
    for name in ("web-1", "web-2"):
        parent = Machine(tmp_path / name)
        parent.out("install", "-", given=machine.out("issue-parent", name, "--csr", "-", given=parent.out("request")))
        instance = (parent.directory / "state" / "instance-id").read_text().strip()
        identity = Authority.load(parent.ca).parent_identity(instance, "us-east-1", datetime.now(UTC))
        documents[name] = tmp_path / f"{name}.cbor"
        documents[name].write_bytes(
            Attester(identity, f"{instance}-enc0123456789abcdef").document(
                {0: b"\1" * 48}, user_data=None, nonce=None, public_key=None, now=datetime.now(UTC)
            )
        )
    machine.out("revoke", "web-1")
    (tmp_path / "lists.crl").write_text(machine.out("crl"))

    def verify(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [ALCOVE, "attest", "verify", documents[name], "--root", machine.ca / "root.pem", *flags]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)

    assert verify("web-1").returncode == 0
    assert verify("web-2", "--crl", "lists.crl").returncode == 0
    refused = verify("web-1", "--crl", "lists.crl")
    assert refused.returncode == 3
    assert "was revoked by aws.nitro-enclaves" in refused.stderr


def test_a_root_on_a_token_is_needed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token signs the regional certificate; then it is removed, and the parent renews what is below by itself."""
    hsm = make_softhsm(tmp_path / "softhsm", monkeypatch)
    hsm.generate(ec.SECP384R1(), "root")
    with_token = Machine(tmp_path / "m", **hsm.environment)
    with_token.out("init", "--pkcs11", "pkcs11:token=hsm;object=root")
    with_token.out("rotate")
    shown = with_token.out("show")
    assert "key    PKCS#11 token: pkcs11:token=hsm;object=root" in shown
    (hsm.directory / "conf").unlink()
    without = Machine(tmp_path / "m")
    first = without.shown()["Chains"]
    without.out("rotate", "--level", "zonal")
    second = without.shown()["Chains"]
    assert first[0]["Certificates"][0] == second[0]["Certificates"][0]  # type: ignore[index]
    assert first[0]["Certificates"][1] != second[0]["Certificates"][1]  # type: ignore[index]
    assert PIN not in without.fails("rotate")
    assert PIN not in "".join(path.read_text() for path in without.ca.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--years", "0"), "--years"),
        (("--years", "31"), "--years"),
        (("--country", "de"), "country"),
        (("--organization", "x" * 65), "64"),
        (("--unit", "a\nb"), "control"),
        (("--passphrase-file", "pass"), "--key-file"),
        (("--pkcs11", "pkcs11:token=a;object=b?pin-value=1234"), "PIN"),
        (("--pkcs11", "nonsense"), "pkcs11:"),
    ],
)
def test_what_cannot_be_makes_no_root(machine: Machine, arguments: tuple[str, ...], why: str) -> None:
    """One line about the flag, and nothing on disk but the lock."""
    (machine.directory / "pass").write_text(PASSPHRASE)
    assert why in machine.fails("init", *arguments)
    assert not machine.ca.exists() or [path.name for path in machine.ca.iterdir()] == [".lock"]


def test_names_of_ones_own(machine: Machine) -> None:
    """Organization, country and unit are in every certificate, and the life is what was said."""
    machine.out("init", "--organization", "Example", "--country", "DE", "--unit", "Lab", "--years", "5")
    machine.out("rotate")
    shown = machine.shown()
    rows = [shown["Root"], *shown["Chains"][0]["Certificates"]]  # type: ignore[index]
    assert all("O=Example" in row["Subject"] and "C=DE" in row["Subject"] for row in rows)
    assert int(rows[0]["NotAfter"][:4]) == int(rows[0]["NotBefore"][:4]) + 5
