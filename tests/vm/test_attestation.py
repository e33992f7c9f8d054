"""Documents from a real enclave: whose root vouches for them, what tampering does, and renewal while it runs.

One enclave for all, not in debug mode, on a machine whose root was on a token that has been taken out.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.pkcs11.softhsm import make_softhsm

from alcove.attestation import (
    AttestationError,
    ChainCache,
    NoDebugMode,
    Root,
    VerifiedAttestation,
    parse_document,
    verify,
)
from alcove.devices.nsm import messages as nsm
from alcove.enclave.paths import Paths

PORT = 5005  # of nsm.c
DOCKERFILE = 'FROM scratch\nCOPY --chmod=0755 nsm /nsm\nCMD ["/nsm"]\n'
UNPROTECTED_AT = 6  # offset of the empty unprotected header


@dataclass
class Enclave:
    """A running enclave that lends its module, and the commands of its parent."""

    cli: Any
    eif: Path
    started: dict[str, Any]
    module: socket.socket

    def ask(self, request: nsm.Request) -> nsm.Response:
        """What /dev/nsm answers."""
        data = nsm.encode_request(request)
        self.module.sendall(len(data).to_bytes(4, "little") + data)
        return nsm.decode_response(self._read(int.from_bytes(self._read(4), "little")))

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (chunk := self.module.recv(size - len(data))):
            data += chunk
        assert len(data) == size, "the enclave has ended"
        return data

    def document(self, nonce: bytes | None = None, user_data: bytes | None = None) -> bytes:
        """A fresh document."""
        answer = self.ask(nsm.Attestation(user_data=user_data, nonce=nonce, public_key=b"key"))
        assert isinstance(answer, nsm.Attested)
        return answer.document

    @property
    def root(self) -> Root:
        """The machine's own."""
        return Root.from_pem((self.cli.directory / "state" / "ca" / "root.pem").read_bytes())

    def verify(self, document: bytes, cache: ChainCache | None = None) -> VerifiedAttestation:
        """As somebody who trusts that root."""
        return verify(document, roots=[self.root], policy=NoDebugMode(), at=datetime.now(UTC), cache=cache)

    def attest(self, command: str, document: bytes, *flags: object) -> subprocess.CompletedProcess[str]:
        """`alcove attest` of this document."""
        path = self.cli.directory / "document.cbor"
        path.write_bytes(document)
        done: subprocess.CompletedProcess[str] = self.cli("alcove", "attest", command, path, *flags)
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture(scope="module")
def nsm_eif(cli: Any) -> Path:
    """An image that runs nsm.c."""
    context = cli.directory / "nsm"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-static", "-Os", "-s"]
    subprocess.run([*compiler, "-o", context / "nsm", Path(__file__).with_name("nsm.c")], check=True)
    eif: Path = cli.directory / "nsm.eif"
    built = cli("nitro-cli", "build-enclave", "--docker-dir", context, "--docker-uri", "nsm:test", "--output-file", eif)
    assert built.returncode == 0, built.stderr
    return eif


@pytest.fixture(scope="module")
def machine(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Commands of a machine of its own, whose root is on a token that is not there any more."""
    made = type(cli)(tmp_path_factory.mktemp("a"))
    state = made.directory / "state"
    state.mkdir()
    tools = Paths.from_environment().tools
    if tools.exists():
        (state / "tools").symlink_to(tools)
    made.environment |= {"ALCOVE_STATE": str(state), "ALCOVE_CA_PASSPHRASE": "correct horse battery"}
    with pytest.MonkeyPatch.context() as patch:
        hsm = make_softhsm(made.directory / "softhsm", patch)
        hsm.generate(ec.SECP384R1(), "root")
        with_token = made.environment | hsm.environment
        for command in (["init", "--pkcs11", "pkcs11:token=hsm;object=root"], ["rotate"]):
            subprocess.run(made.command("alcove", "ca", *command), env=with_token, check=True, capture_output=True)
        (hsm.directory / "tokens").rename(hsm.directory / "safe")
    yield made
    made("nitro-cli", "terminate-enclave", "--all")


@pytest.fixture(scope="module")
def enclave(machine: Any, nsm_eif: Path) -> Iterator[Enclave]:
    """The enclave, once it has connected."""
    ports = machine.run_directory / "vsock"
    ports.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(ports)  # a path of any length
        listener.bind(f"{PORT}.sock")
        os.chdir(here)
        listener.listen()
        listener.settimeout(120)
        started = machine.run_enclave(nsm_eif)
        module, _ = listener.accept()
    with module:
        module.settimeout(120)
        yield Enclave(machine, nsm_eif, started, module)
        machine.terminate(started)


def certificates(document: bytes) -> list[bytes]:
    """The chain in a document, root first."""
    said = parse_document(document)
    return [*said.cabundle, said.certificate]


def test_the_parent_runs_without_the_token(enclave: Enclave) -> None:
    """The root's key is on a token that is away: documents come and verify, and the root signs nothing."""
    shown = enclave.cli.json("alcove", "ca", "show", "--json")
    assert shown["Root"]["Key"]["Kind"] == "PKCS#11 token"
    refused = enclave.cli("alcove", "ca", "rotate")
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    verified = enclave.verify(enclave.document())
    assert verified.document.module_id == enclave.started["EnclaveID"]
    assert len(verified.certificates) == 5


def test_a_document_is_valid_below_its_root_alone(enclave: Enclave, world_pem: Path) -> None:
    """`attest verify` ends with 0 for --root and this machine's own, with 3 for AWS's root and another of our shape."""
    document = enclave.document(nonce=b"challenge")
    root = enclave.cli.directory / "state" / "ca" / "root.pem"
    for flags in ((), ("--root", root), ("--root", f"sha256:{enclave.root.hex}"), ("--root", "aws", "--root", root)):
        done = enclave.attest("verify", document, *flags, "--nonce", b"challenge".hex(), "--max-age", 300)
        assert (done.returncode, done.stderr) == (0, "")
        assert "ok  14. verified" in done.stdout
    for other in ("aws", world_pem):
        done = enclave.attest("verify", document, "--root", other)
        assert done.returncode == 3
        assert "which is not trusted" in done.stderr


@pytest.fixture
def world_pem(tmp_path: Path, cli: Any) -> Path:
    """The root of another machine."""
    environment = cli.environment | {"ALCOVE_STATE": str(tmp_path)}
    for command in (["init"], ["export", "--output", tmp_path / "other.pem"]):
        subprocess.run(cli.command("alcove", "ca", *command), env=environment, check=True, capture_output=True)
    return tmp_path / "other.pem"


def test_what_is_measured_is_what_is_attested(enclave: Enclave, hello_eif: Path) -> None:
    """The policy of the image is met (0), another image's is not (4), and `show --eif` tells them apart."""
    document = enclave.document()
    for image, status, said in ((enclave.eif, 0, "this one"), (hello_eif, 4, "NOT this one, by PCR0, PCR2")):
        policy = enclave.cli.directory / "policy.json"
        policy.write_text(enclave.cli("alcove", "attest", "measure", image).stdout)
        assert enclave.attest("verify", document, "--policy", policy).returncode == status
        shown = enclave.attest("show", document, "--eif", image)
        assert re.search(rf"^image +{said}$", shown.stdout, re.MULTILINE), shown.stdout


def test_every_changed_byte_of_a_document_is_found(enclave: Enclave) -> None:
    """All of them, also in the unprotected header, which is a map of nothing: no other byte there is one."""
    document, cache = enclave.document(nonce=b"n" * 32, user_data=b""), ChainCache()
    enclave.verify(document, cache)
    for index in range(len(document)):
        changed = document[:index] + bytes((document[index] ^ 0x01,)) + document[index + 1 :]
        with pytest.raises(AttestationError):
            enclave.verify(changed, cache)
    assert document[UNPROTECTED_AT] == 0xA0


def _renewed(before: bytes, after: bytes) -> list[bool]:
    return [old != new for old, new in zip(certificates(before), certificates(after), strict=True)]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("instance", [False, False, False, True, True]),
        ("zonal", [False, False, True, True, True]),
    ],
)
def test_certificates_are_renewed_while_it_runs(enclave: Enclave, level: str, expected: list[bool]) -> None:
    """The next document is below the new certificates, with a new leaf; the enclave knows nothing of it."""
    enclave.ask(nsm.ExtendPCR(16, level.encode()))
    register, before = enclave.ask(nsm.DescribePCR(16)), enclave.document()
    assert _renewed(before, enclave.document()) == [False] * 5
    done = enclave.cli("alcove", "ca", "rotate", "--level", level)
    assert done.returncode == 0, done.stderr
    after = enclave.document()
    assert _renewed(before, after) == expected
    enclave.verify(before)
    enclave.verify(after)
    assert enclave.ask(nsm.DescribePCR(16)) == register


def test_a_revoked_instance_is_left_at_once(enclave: Enclave) -> None:
    """The list refuses the document from before the revocation, and not the next one."""
    before = enclave.document()
    serial = json.loads(enclave.attest("show", before, "--json").stdout)["chain"][3]["serial"]
    assert enclave.cli("alcove", "ca", "revoke", serial).returncode == 0
    lists = enclave.cli.directory / "lists.crl"
    lists.write_text("".join(path.read_text() for path in (enclave.cli.directory / "state/ca/crl").glob("*.crl")))
    refused = enclave.attest("verify", before, "--crl", lists)
    assert refused.returncode == 3
    assert "was revoked by" in refused.stderr
    after = enclave.document()
    assert _renewed(before, after)[3:] == [True, True]
    assert enclave.attest("verify", after, "--crl", lists).returncode == 0


def test_another_root_is_changed_to_while_it_runs(enclave: Enclave) -> None:
    """In two steps; a verifier that was given both roots between them accepts every document, before and after."""
    old, before = enclave.root, enclave.document()
    for step in (("--root", "--protect"), ("--switch",)):
        done = enclave.cli("alcove", "ca", "rotate", *step)
        assert done.returncode == 0, done.stderr
    after = enclave.document()
    assert _renewed(before, after) == [True] * 5
    assert enclave.root != old
    for document in (before, after):
        assert enclave.attest("verify", document).returncode == 0
    assert enclave.attest("verify", after, "--root", f"sha256:{old.hex}").returncode == 3
