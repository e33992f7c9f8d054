"""A root whose key is elsewhere: behind a passphrase, on a token, away."""

from __future__ import annotations

import multiprocessing
import stat
import subprocess
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.unit.attestation.chains import ENCLAVE_ID, INSTANCE_ID, NOW, PCRS, REGION
from tests.unit.pkcs11.softhsm import PIN, SoftHsm, make_softhsm

from alcove.attestation import pki, revocation
from alcove.attestation.attester import Attester
from alcove.attestation.authority import Authority
from alcove.attestation.certificate import parse_certificate
from alcove.attestation.inventory import notices, take_inventory
from alcove.attestation.place import Level
from alcove.attestation.policy import NoDebugMode
from alcove.attestation.root_key import KeyPlace, Kind, NewKey, environment_passphrase, protected_pem
from alcove.attestation.verify import Root, verify
from alcove.errors import AlcoveError, MachineError, UsageError

PASSPHRASE = b"correct horse battery staple"
HOUR = timedelta(hours=1)
URI = "pkcs11:token=hsm;object=root"


@pytest.fixture(autouse=True)
def _no_passphrase_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALCOVE_CA_PASSPHRASE", "ALCOVE_CA_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def protected(tmp_path: Path) -> Authority:
    key = NewKey(file=tmp_path / "stick" / "root.pem", passphrase=PASSPHRASE)
    (tmp_path / "stick").mkdir()
    Authority.create(tmp_path / "ca", NOW, key=key)
    return Authority.load(tmp_path / "ca")


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    """A token with the key `root`; the process may use it."""
    made = make_softhsm(tmp_path / "softhsm", monkeypatch)
    made.generate(ec.SECP384R1(), "root")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def proves(authority: Authority, root: Root, now: timedelta) -> None:
    """A document at NOW + `now` verifies below `root`."""
    identity = authority.parent_identity(INSTANCE_ID, REGION, NOW + now)
    attester = Attester(identity, ENCLAVE_ID)
    data = attester.document(PCRS, user_data=None, nonce=b"n", public_key=None, now=NOW + now)
    verify(data, roots=[root], policy=NoDebugMode(), at=NOW + now, nonce=b"n")


def test_a_protected_key_is_read_by_openssl_and_by_nobody_without_the_passphrase(tmp_path: Path) -> None:
    """PBES2 with 600,000 rounds; the same key with the passphrase, an error without."""
    key = ec.generate_private_key(ec.SECP384R1())
    pem = protected_pem(key, PASSPHRASE)
    (tmp_path / "key.pem").write_bytes(pem)
    (tmp_path / "pass").write_bytes(PASSPHRASE + b"\n")
    command = ["openssl", "pkey", "-in", "key.pem", "-pubout", "-passin", "file:pass"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.startswith(b"-----BEGIN PUBLIC KEY-----")
    opened = load_pem_private_key(pem, PASSPHRASE)
    assert isinstance(opened, ec.EllipticCurvePrivateKey)
    assert opened.private_numbers() == key.private_numbers()
    with pytest.raises(ValueError, match=r".*"):
        load_pem_private_key(pem, PASSPHRASE + b"x")
    parsed = subprocess.run(["openssl", "asn1parse", "-in", "key.pem"], cwd=tmp_path, capture_output=True, check=True)
    assert b":PBKDF2" in parsed.stdout
    assert f":{600_000:06X}".encode() in parsed.stdout
    assert b":aes-256-cbc" in parsed.stdout
    assert protected_pem(key, PASSPHRASE) != pem


@pytest.mark.parametrize("passphrase", [b"", b"short", b"elevenbytes", bytes(1024)])
def test_passphrases_have_a_length(tmp_path: Path, passphrase: bytes) -> None:
    """From 12 to 1023 bytes, and nothing is left behind when one is refused."""
    with pytest.raises(UsageError, match="12 to 1023"):
        Authority.create(tmp_path / "ca", NOW, key=NewKey(file=tmp_path / "k", passphrase=passphrase))
    assert not (tmp_path / "k").exists()
    assert not (tmp_path / "ca" / "root.pem").exists()


def test_the_passphrase_opens_the_root_and_only_for_the_regional(protected: Authority, tmp_path: Path) -> None:
    """Without it nothing can be issued at first; with it once, everything below lasts without it."""
    with pytest.raises(MachineError, match="protected by a passphrase"):
        protected.parent_identity(INSTANCE_ID, REGION, NOW)
    with pytest.raises(MachineError, match="passphrase is wrong"):
        Authority.load(tmp_path / "ca", b"some other passphrase").parent_identity(INSTANCE_ID, REGION, NOW)
    Authority.load(tmp_path / "ca", PASSPHRASE).parent_identity(INSTANCE_ID, REGION, NOW)
    (tmp_path / "stick" / "root.pem").unlink()
    proves(Authority.load(tmp_path / "ca"), protected.root, 10 * HOUR)
    assert stat.S_IMODE((tmp_path / "ca" / "root-key.pem").stat().st_mode) == 0o600
    assert (tmp_path / "ca" / "root-key.pem").read_text() == f"file:{tmp_path}/stick/root.pem\n"


def test_a_key_can_stay_protected_in_the_directory(tmp_path: Path) -> None:
    """Without a file of its own the protected key is where the plain one would be."""
    authority = Authority.create(tmp_path / "ca", NOW, key=NewKey(passphrase=PASSPHRASE))
    path = tmp_path / "ca" / "root-key.pem"
    assert authority.store.key_place() == KeyPlace(Kind.PROTECTED, str(path))
    assert b"ENCRYPTED" in path.read_bytes()
    proves(Authority.load(tmp_path / "ca", PASSPHRASE), authority.root, 0 * HOUR)


def test_a_passphrase_in_the_environment_renews_unattended(
    protected: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a service manager provides, or the text itself."""
    (tmp_path / "pass").write_bytes(PASSPHRASE + b"\r\nsecond line\n")
    monkeypatch.setenv("ALCOVE_CA_PASSPHRASE_FILE", str(tmp_path / "pass"))
    proves(Authority.open(tmp_path / "ca"), protected.root, 0 * HOUR)
    assert environment_passphrase({"ALCOVE_CA_PASSPHRASE": "text"}) == b"text"
    assert environment_passphrase({"ALCOVE_CA_PASSPHRASE": ""}) is None


def test_no_key_is_overwritten_and_none_lies_about_unprotected(tmp_path: Path) -> None:
    """A file that exists stays as it is; a key outside of the directory needs a passphrase."""
    (tmp_path / "key").write_bytes(b"precious")
    for key, why in (
        (NewKey(file=tmp_path / "key", passphrase=PASSPHRASE), "exists already"),
        (NewKey(file=tmp_path / "other"), "needs a passphrase"),
    ):
        with pytest.raises(UsageError, match=why):
            Authority.create(tmp_path / "ca", NOW, key=key)
    assert (tmp_path / "key").read_bytes() == b"precious"
    assert [path.name for path in (tmp_path / "ca").iterdir()] == [".lock"]


def test_what_cannot_be_written_leaves_nothing_half_done(tmp_path: Path) -> None:
    """A file in a directory that is not there: no root, and a second try makes one."""
    with pytest.raises(MachineError, match="cannot write"):
        Authority.create(tmp_path / "ca", NOW, key=NewKey(file=tmp_path / "no" / "key", passphrase=PASSPHRASE))
    assert [path.name for path in (tmp_path / "ca").iterdir()] == [".lock"]
    Authority.create(tmp_path / "ca", NOW)


def test_a_token_signs_what_any_verifier_accepts(hsm: SoftHsm, tmp_path: Path) -> None:
    """Root, regional certificate and revocation list by the token; openssl agrees; the PIN is nowhere on disk."""
    authority = Authority.create(tmp_path / "ca", NOW, key=NewKey(uri=URI))
    identity = authority.parent_identity(INSTANCE_ID, REGION, NOW)
    proves(authority, authority.root, 0 * HOUR)
    chain = [parse_certificate(data) for data in identity.cabundle]
    assert chain[0].is_signed_by(chain[0])
    assert chain[1].is_signed_by(chain[0])
    (tmp_path / "chain.pem").write_bytes(
        b"".join((tmp_path / "ca" / REGION / name).read_bytes() for name in ("regional.pem", "zonal.pem"))
    )
    command = [
        "openssl", "verify", "-attime", str(int(NOW.timestamp())), "-CAfile", "ca/root.pem",
        "-untrusted", "chain.pem", f"ca/{REGION}/{INSTANCE_ID}.pem",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert revocation.refresh(authority, NOW) is None
    command = ["openssl", "crl", "-in", str(authority.store.crl_path(authority.certificate)), "-noout", "-CAfile"]
    done = subprocess.run([*command, "ca/root.pem"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "verify OK" in done.stderr
    assert authority.store.key_place() == KeyPlace(Kind.TOKEN, URI)
    held = b"".join(path.read_bytes() for path in (tmp_path / "ca").rglob("*") if path.is_file())
    assert PIN.encode() not in held


def test_the_parent_runs_with_the_token_removed(hsm: SoftHsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regional certificate issued once is all that a parent needs until it runs out; then the error says so."""
    authority = Authority.create(tmp_path / "ca", NOW, key=NewKey(uri=URI))
    authority.parent_identity(INSTANCE_ID, REGION, NOW)
    monkeypatch.delenv("SOFTHSM2_CONF")
    (hsm.directory / "conf").unlink()
    away = Authority.open(tmp_path / "ca")
    for hour in (*range(0, 20 * 24 - 3, 11), 20 * 24 - 4):
        proves(away, authority.root, hour * HOUR)
    with pytest.raises(AlcoveError, match=r"token|PKCS#11|module"):
        away.parent_identity(INSTANCE_ID, REGION, NOW + timedelta(days=20))


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("pkcs11:token=hsm;object=absent", "no private key"),
        ("pkcs11:token=other;object=root", "token"),
        ("pkcs11:token=hsm;object=root?pin-value=1234", "PIN"),
        ("file:/etc/passwd", "pkcs11:"),
        ("pkcs11:token=hsm;object=small", "not of P-384"),
    ],
)
def test_a_token_that_will_not_do_makes_no_root(hsm: SoftHsm, tmp_path: Path, uri: str, why: str) -> None:
    """Another key, token, curve or form of URI: one error, and the directory stays empty."""
    hsm.generate(ec.SECP256R1(), "small", b"\2")
    with pytest.raises(AlcoveError, match=why):
        Authority.create(tmp_path / "ca", NOW, key=NewKey(uri=uri))
    assert [path.name for path in (tmp_path / "ca").iterdir()] == [".lock"]


def test_another_key_under_the_same_name_is_noticed(hsm: SoftHsm, tmp_path: Path) -> None:
    """The token's key is compared with root.pem before it signs."""
    authority = Authority.create(tmp_path / "ca", NOW, key=NewKey(uri=URI))
    hsm.remove(label="root")
    hsm.generate(ec.SECP384R1(), "root")
    with pytest.raises(MachineError, match=r"does not belong to root\.pem"):
        authority.parent_identity(INSTANCE_ID, REGION, NOW)


def test_a_token_that_signs_wrongly_is_not_believed() -> None:
    """A signature that the public key does not accept is an error and no certificate."""
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(2)]
    for sign in (
        lambda data: keys[1].sign(data, ec.ECDSA(pki.SHA384())),
        lambda _: b"",
    ):
        with pytest.raises(MachineError, match="does not accept"):
            pki.issue_root(pki.RemoteKey(keys[0].public_key(), sign), serial=7, now=NOW)


def test_the_end_of_a_regional_certificate_is_announced(protected: Authority, tmp_path: Path) -> None:
    """A notice in the last week, an urgent one when no document can be made; none where the key is at hand."""
    Authority.load(tmp_path / "ca", PASSPHRASE).parent_identity(INSTANCE_ID, REGION, NOW)
    store = protected.store

    def said(days: float) -> list[tuple[bool, str]]:
        return [(notice.urgent, notice.text) for notice in notices(store, NOW + timedelta(days=days))]

    assert said(10) == []
    ((urgent, text),) = said(14)
    assert (urgent, "ends at 2026-03-24T05:06:07Z" in text, "passphrase-protected file" in text) == (False, True, True)
    ((urgent, text),) = said(19.9)
    assert (urgent, "ended" in text) == (True, True)
    assert take_inventory(store, NOW + timedelta(days=14))["Notices"][0]["Urgent"] is False
    Authority.create(tmp_path / "plain", NOW).parent_identity(INSTANCE_ID, REGION, NOW)
    assert notices(Authority.load(tmp_path / "plain").store, NOW + timedelta(days=19.9)) == []


def test_what_is_forced_is_renewed_or_refused(protected: Authority, tmp_path: Path) -> None:
    """A rotation does not quietly keep what it could not renew; lower levels do not need the root."""
    authority = Authority.load(tmp_path / "ca", PASSPHRASE)
    first = authority.parent_identity(INSTANCE_ID, REGION, NOW)
    renewed = authority.parent_identity(INSTANCE_ID, REGION, NOW, renew=frozenset(Level))
    assert not set(first.cabundle[1:]) & set(renewed.cabundle)
    with pytest.raises(MachineError, match="protected by a passphrase"):
        protected.parent_identity(INSTANCE_ID, REGION, NOW, renew=frozenset(Level))
    lower = protected.parent_identity(INSTANCE_ID, REGION, NOW, renew=frozenset({Level.ZONAL, Level.INSTANCE}))
    assert lower.cabundle[:2] == renewed.cabundle[:2]
    assert not set(lower.cabundle[2:]) & set(renewed.cabundle)


def _rotate(directory: Path) -> tuple[bytes, ...]:
    identity = Authority.load(directory).parent_identity(INSTANCE_ID, REGION, NOW, renew=frozenset(Level))
    certificates = [parse_certificate(data) for data in identity.cabundle]
    for parent, child in pairwise(certificates):
        assert child.is_signed_by(parent)
    return identity.cabundle


def test_rotations_at_the_same_time_do_not_clash(tmp_path: Path) -> None:
    """Eight renewals in four processes: eight whole chains, no serial number twice, and the last one stays."""
    Authority.create(tmp_path / "ca", NOW)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        chains = pool.map(_rotate, [tmp_path / "ca"] * 8)
    serials = [parse_certificate(data).serial for chain in chains for data in chain[1:]]
    assert len(set(serials)) == 24
    assert Authority.load(tmp_path / "ca").parent_identity(INSTANCE_ID, REGION, NOW).cabundle in chains
    assert not list((tmp_path / "ca").rglob("*.new"))


def test_serial_numbers_are_long_positive_and_remembered(tmp_path: Path) -> None:
    """At least 126 random bits; what ran out is forgotten."""
    store = Authority.create(tmp_path / "ca", NOW).store
    for size, top in ((16, 128), (20, 159)):
        numbers = {store.fresh_serial(size) for _ in range(64)}
        assert len(numbers) == 64
        assert all(top - 2 <= number.bit_length() <= top for number in numbers)
        assert len({number >> 64 for number in numbers}) == 64
    authority = Authority(store)
    first = authority.parent_identity(INSTANCE_ID, REGION, NOW).issuer.certificate.serial_number
    assert store.issued(first) is not None
    authority.parent_identity(INSTANCE_ID, REGION, NOW + timedelta(days=2))
    assert store.issued(first) is None
