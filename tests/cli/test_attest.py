"""`alcove attest` as scripts and people run it: status, standard output, standard error."""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.cli.small_image import write_small_image
from tests.unit.attestation.chains import ENCLAVE_ID, PCRS, World, make_world, new_key

from alcove.attestation import NoDebugMode, verify
from alcove.cli.attest_request import request
from alcove.devices.nsm.module import NsmModule
from alcove.errors import UsageError
from alcove.image.describe import describe_eif

pytestmark = pytest.mark.slow

ALCOVE = Path(sys.executable).parent / "alcove"
NONCE = "00112233445566778899"


def run(*arguments: str, directory: Path, given: bytes = b"") -> tuple[int, str, str]:
    """Status, standard output and standard error; whatever happens, there is no traceback."""
    environment = os.environ | {"ALCOVE_STATE": str(directory / "state")}
    done = subprocess.run(
        [ALCOVE, "attest", *arguments], input=given, capture_output=True, check=False, cwd=directory, env=environment
    )
    error = done.stderr.decode()
    assert "Traceback" not in error
    return done.returncode, done.stdout.decode(errors="replace"), error


@pytest.fixture(scope="module")
def live() -> World:
    """A chain that is valid now."""
    return make_world(datetime.now(UTC))


@pytest.fixture
def place(tmp_path: Path, live: World) -> Path:
    """A directory with documents, a root, policies."""
    files: dict[str, bytes] = {
        "root.pem": live.issuers[0].certificate.public_bytes(Encoding.PEM),
        "good.cbor": live.document(nonce=bytes.fromhex(NONCE), user_data=b'{"a": 1}'),
        "debug.cbor": live.document(pcrs={**PCRS, **dict.fromkeys((0, 1, 2), bytes(48))}),
        "forged.cbor": (genuine := live.document())[:-1] + bytes((genuine[-1] ^ 1,)),
        "policy.json": json.dumps({"PCR0": PCRS[0].hex(), "PCR1": PCRS[1].hex()}).encode(),
        "other.yaml": f"PCR0: '{'ab' * 48}'\n".encode(),
        "signer.json": b'{"SignedBy": "root.pem"}',
        "empty.json": b"{}",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("good.cbor",), 0),
        (("good.cbor", "--nonce", NONCE, "--policy", "policy.json", "--max-age", "600", "--strict"), 0),
        (("good.cbor", "--root", "aws"), 0),  # either root will do
        (("debug.cbor", "--allow-debug"), 0),
        (("good.cbor", "--at", "document", "--max-age", "600"), 0),
        (("forged.cbor",), 3),
        (("root.pem",), 3),
        (("good.cbor", "--at", "2020-01-01T00:00:00Z"), 3),
        (("good.cbor", "--at", "2020-01-01"), 3),
        (("good.cbor", "--at", "0001-01-01T00:00:00+14:00"), 3),
        (("good.cbor", "--nonce", "00"), 4),
        (("good.cbor", "--policy", "other.yaml"), 4),
        (("good.cbor", "--policy", "signer.json"), 4),
        (("debug.cbor",), 4),
        (("debug.cbor", "--policy", "policy.json", "--allow-debug"), 4),
        (("nowhere.cbor",), 19),
        (("good.cbor", "--policy", "nowhere.json"), 19),
        (("good.cbor", "--root", "nowhere.pem"), 19),
        (("good.cbor", "--crl", "nowhere.crl"), 19),
        (("good.cbor", "--policy", "empty.json"), 1),
        (("good.cbor", "--root", "good.cbor"), 1),
        (("good.cbor", "--root", "sha256:00"), 1),
        (("good.cbor", "--crl", "root.pem"), 1),
        (("good.cbor", "--at", "yesterday"), 1),
        (("good.cbor", "--nonce", "xyz"), 1),
        (("good.cbor", "--nonce", ""), 1),
        (("good.cbor", "--max-age", "-1"), 2),
        (("good.cbor", "--max-age", "1e9"), 2),
        ((), 2),
    ],
)
def test_the_status_tells_invalid_from_unwelcome(place: Path, arguments: tuple[str, ...], status: int) -> None:
    """0 valid, 3 not a valid document, 4 valid but the policy is not met; other for what the caller did wrong."""
    code, out, error = run("verify", *arguments, "--root", "root.pem", directory=place)
    assert code == status, error
    assert bool(out) == (status == 0)
    assert bool(error) == (status != 0)


def test_programs_read_json(place: Path) -> None:
    """One object on standard output, whether valid or not, with the step that failed."""
    root = ("--root", "root.pem", "--json")
    good = json.loads(run("verify", "good.cbor", *root, directory=place)[1])
    assert (good["valid"], len(good["steps"]), good["nonce"]) == (True, 14, NONCE)
    assert good["contents"]["user_data"] == {"kind": "JSON", "value": '{"a": 1}'}
    forged = json.loads(run("verify", "forged.cbor", *root, directory=place)[1])
    assert (forged["valid"], forged["step"], forged["policy"]) == (False, 11, False)
    debug = json.loads(run("verify", "debug.cbor", *root, directory=place)[1])
    assert (debug["valid"], debug["step"], debug["policy"]) == (False, 13, True)


def test_a_document_comes_from_standard_input_too(place: Path) -> None:
    """``-`` is standard input; base64 and hexadecimal are recognised and not guessed at."""
    data = (place / "good.cbor").read_bytes()
    assert run("verify", "-", "--root", "root.pem", directory=place, given=data)[0] == 0
    code, _, error = run("verify", "-", "--root", "root.pem", directory=place, given=base64.encodebytes(data))
    assert (code, "base64 -d" in error) == (3, True)
    code, _, error = run("show", "-", directory=place, given=data.hex("\n", 32).encode())
    assert (code, "xxd -r -p" in error) == (3, True)
    assert run("show", "-", directory=place, given=b"")[0] == 3


def test_an_endless_file_is_refused(place: Path) -> None:
    """No more is read than shows that it is too large."""
    code, _, error = run("verify", "/dev/zero", "--root", "root.pem", directory=place)
    assert (code, "more than 16384 bytes" in error) == (3, True)


def test_part_of_a_policy_is_no_policy(place: Path) -> None:
    """A file that is larger than what is read is refused, for its end could hold another pin."""
    policy = place / "long.yaml"
    policy.write_text((place / "policy.json").read_text() + "\n" + "#" * (1 << 20))
    code, _, error = run("verify", "good.cbor", "--root", "root.pem", "--policy", "long.yaml", directory=place)
    assert (code, "long.yaml` has more than 1048576 bytes" in error) == (1, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-"])
@pytest.mark.parametrize("flags", ["", "--json"])
def test_what_cannot_be_printed_is_an_error(place: Path, redirection: str, flags: str) -> None:
    """Status 0 says that the answer was given; with standard output full or closed it is another, and one line."""
    line = f'"$0" attest verify good.cbor --root root.pem {flags} {redirection}'
    done = subprocess.run(["sh", "-c", line, ALCOVE], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "standard output" in done.stderr


def test_whoever_verifies_makes_no_root(place: Path) -> None:
    """Without --root this machine's own is meant, and when there is none, none is made."""
    code, _, error = run("verify", "good.cbor", directory=place)
    assert (code, "--root" in error) == (1, True)
    assert not (place / "state").exists()


def test_show_explains_and_does_not_vouch(place: Path, live: World) -> None:
    """It says that nothing was checked, even of a forged document."""
    code, out, _ = run("show", "forged.cbor", directory=place)
    assert (code, out.splitlines()[0]) == (0, "NOT CHECKED: `alcove attest verify` checks")
    assert live.root.hex in out
    answer = json.loads(run("show", "forged.cbor", "--json", directory=place)[1])
    assert (answer["verified"], answer["root"]) == (False, live.root.hex)
    assert run("show", "root.pem", directory=place)[0] == 3


@pytest.fixture
def eif(place: Path) -> Path:
    return write_small_image(place / "app.eif")


def test_what_is_measured_is_a_policy(place: Path, eif: Path, live: World) -> None:
    """`measure` prints what `--policy` takes, and `show --eif` compares the same registers."""
    code, out, _ = run("measure", str(eif), directory=place)
    assert code == 0
    policy = json.loads(out)
    assert policy == {name: value for name, value in describe_eif(eif)["Measurements"].items() if "PCR" in name}
    (place / "measured.json").write_text(out)
    pcrs = {**PCRS, **{index: bytes.fromhex(policy[f"PCR{index}"]) for index in (0, 1, 2)}}
    (place / "of-image.cbor").write_bytes(live.document(pcrs=pcrs))
    flags = ("--root", "root.pem", "--policy", "measured.json")
    assert run("verify", "of-image.cbor", *flags, directory=place)[0] == 0
    assert run("verify", "good.cbor", *flags, directory=place)[0] == 4
    assert "image      this one" in run("show", "of-image.cbor", "--eif", str(eif), directory=place)[1]
    assert "image      NOT this one" in run("show", "good.cbor", "--eif", str(eif), directory=place)[1]
    answer = json.loads(run("show", "good.cbor", "--eif", str(eif), "--json", directory=place)[1])
    assert answer["image"]["matches"] is False
    assert run("measure", "good.cbor", directory=place)[0] == 35


@pytest.mark.skipif(Path("/dev/nsm").exists(), reason="this is an enclave")
def test_a_request_outside_an_enclave_says_where_it_belongs(place: Path) -> None:
    """There is no security module here; no file is left behind."""
    code, out, error = run("request", "--nonce", NONCE, "--output", "new.cbor", directory=place)
    assert (code, out) == (1, "")
    assert "/dev/nsm" in error
    assert "hint: run this in an enclave" in error
    assert not list(place.glob("*new.cbor*"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--nonce", "xyz"), "hexadecimal"),
        (("--nonce", "00" * 1025), "1024 bytes"),
        (("--user-data", "x" * 1025), "1024 bytes"),
        (("--user-data", "@/nowhere"), "cannot read"),
        (("--user-data", "@/dev/zero"), "1024 bytes"),
        (("--public-key", "root.pem"), "no public key"),
        (("--public-key", "good.cbor"), "no public key"),
    ],
)
def test_a_request_that_no_verifier_would_accept_is_not_made(
    place: Path, arguments: tuple[str, ...], reason: str
) -> None:
    """The fields' limits are the verifier's, and are looked at before the device is."""
    code, out, error = run("request", *arguments, directory=place)
    assert code in {1, 19}
    assert (out, reason in error) == ("", True), error


def test_revocation_lists_are_asked(place: Path, live: World) -> None:
    """A list that names the instance refuses its documents (step 10); without the list they are valid."""
    from cryptography import x509  # noqa: PLC0415 - one test
    from cryptography.hazmat.primitives.hashes import SHA384  # noqa: PLC0415

    zonal, instance = live.issuers[2], live.issuers[3]
    day, now = timedelta(days=1), datetime.now(UTC)
    revoked = x509.RevokedCertificateBuilder(instance.certificate.serial_number, now).build()
    builder = x509.CertificateRevocationListBuilder(zonal.certificate.subject, now - day, now + day, [], [revoked])
    crl = builder.sign(zonal.key, SHA384())  # type: ignore[arg-type]
    (place / "zonal.crl").write_bytes(crl.public_bytes(Encoding.PEM))
    code, out, _ = run("verify", "good.cbor", "--root", "root.pem", "--crl", "zonal.crl", "--json", directory=place)
    assert (code, json.loads(out)["step"]) == (3, 10)


def test_keys_in_both_forms_are_read(tmp_path: Path) -> None:
    """PEM and DER give the DER that KMS wants."""
    from alcove.cli.attest_request import _public_key  # noqa: PLC0415 - the only part that needs no enclave

    public = new_key().public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.der").write_bytes(der)
    (tmp_path / "key.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert _public_key(tmp_path / "key.der") == _public_key(tmp_path / "key.pem") == der


class ModuleChannel:
    """The real module and signer in this process, in the device node's place."""

    def __init__(self, world: World) -> None:
        def attest(pcrs: object, user_data: bytes | None, nonce: bytes | None, public_key: bytes | None) -> bytes:
            return world.document(pcrs=pcrs, user_data=user_data, nonce=nonce, public_key=public_key)

        self._module = NsmModule(ENCLAVE_ID, PCRS, attest, os.urandom)

    def exchange(self, request: bytes) -> bytes:
        """One request."""
        return self._module.handle(request)

    def close(self) -> None:
        """Nothing to close."""


def test_a_request_writes_a_document_that_verifies(place: Path, live: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields go to the module as they are, the answer to the file, whole, and a verifier finds all of it."""
    monkeypatch.setattr("alcove.sdk.nsm.DeviceChannel", lambda: ModuleChannel(live))
    public = new_key().public_key()
    (place / "key.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (place / "data").write_bytes(b"\x00\x01")
    (place / "new.cbor").write_bytes(b"old")
    arguments = argparse.Namespace(
        nonce=NONCE, user_data=f"@{place / 'data'}", public_key=place / "key.pem", output=place / "new.cbor"
    )
    request(arguments)
    verified = verify((place / "new.cbor").read_bytes(), roots=[live.root], policy=NoDebugMode(), at=live.now)
    document = verified.document
    assert (document.nonce, document.user_data) == (bytes.fromhex(NONCE), b"\x00\x01")
    assert document.public_key == public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert not list(place.glob(".new.cbor*"))
    arguments.output = place / "no" / "such" / "directory"
    with pytest.raises(UsageError, match="cannot write"):
        request(arguments)
