from __future__ import annotations

import multiprocessing
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.attestation.chains import ENCLAVE_ID, INSTANCE_ID, NOW, PCRS, REGION

from alcove.attestation.attester import Attester, ParentIdentity
from alcove.attestation.authority import Authority
from alcove.attestation.certificate import parse_certificate
from alcove.attestation.document import parse_document
from alcove.attestation.place import default_instance_id
from alcove.attestation.policy import NoDebugMode
from alcove.attestation.verify import verify
from alcove.errors import MachineError, UsageError


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", NOW)


@pytest.fixture
def identity(authority: Authority) -> ParentIdentity:
    return authority.parent_identity(INSTANCE_ID, REGION, NOW)


def document(attester: Attester, at: timedelta = timedelta()) -> bytes:
    return attester.document(PCRS, user_data=None, nonce=None, public_key=None, now=NOW + at)


def test_files_are_for_their_owner_alone(authority: Authority, identity: ParentIdentity) -> None:
    """Directories 0700, keys 0600, the root's certificate 0644; no other files."""
    base = authority.root_path.parent
    modes = {str(path.relative_to(base)): stat.S_IMODE(path.stat().st_mode) for path in base.rglob("*")}
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    issued = {name: modes.pop(name) for name in list(modes) if name.startswith("issued/")}
    assert set(issued.values()) == {0o644}
    assert len(issued) == 3
    assert modes == {
        "issued": 0o700,
        ".lock": 0o600,
        "root.pem": 0o644,
        "root-key.pem": 0o600,
        REGION: 0o700,
        f"{REGION}/regional.pem": 0o600,
        f"{REGION}/zonal.pem": 0o600,
        f"{REGION}/{INSTANCE_ID}.pem": 0o600,
    }
    assert b"PRIVATE" not in authority.root_path.read_bytes()


def test_an_authority_is_created_once(authority: Authority, tmp_path: Path) -> None:
    """A second root would disown everything below the first; `open` and `load` find the first."""
    with pytest.raises(UsageError, match="already"):
        Authority.create(tmp_path / "ca")
    assert Authority.open(tmp_path / "ca").root == Authority.load(tmp_path / "ca").root == authority.root
    with pytest.raises(UsageError, match="no root"):
        Authority.load(tmp_path / "other")
    assert Authority.open(tmp_path / "deep" / "other").root != authority.root


def test_a_root_is_changed_in_steps(authority: Authority, tmp_path: Path, identity: ParentIdentity) -> None:
    """A root to come is trusted before it signs, a former one until it is forgotten; then all is issued anew."""
    base = tmp_path / "ca"
    coming = authority.prepare_root(now=NOW)
    assert authority.trusted == (authority.root, coming)
    assert authority.parent_identity(INSTANCE_ID, REGION, NOW).cabundle == identity.cabundle
    with pytest.raises(UsageError, match="to come already"):
        authority.prepare_root(now=NOW)
    new = authority.switch_root()
    assert new.trusted == (coming, authority.root)
    changed = new.parent_identity(INSTANCE_ID, REGION, NOW)
    assert not set(changed.cabundle) & set(identity.cabundle)
    data = document(Attester(changed, ENCLAVE_ID))
    verify(data, roots=[coming], policy=NoDebugMode(), at=NOW)
    with pytest.raises(UsageError, match="no root to come"):
        new.switch_root()
    with pytest.raises(UsageError, match="no former root"):
        new.forget_root(authority.root.hex[:7])
    new.forget_root(authority.root.hex[:8])
    assert Authority.load(base).trusted == (coming,)
    assert not (base / "next" / "root-key.pem").exists()


def test_a_crash_between_the_new_roots_certificate_and_its_key_heals(authority: Authority, tmp_path: Path) -> None:
    """The next one to open the directory brings the key after the certificate."""
    base = tmp_path / "ca"
    authority.prepare_root(now=NOW)
    key = (base / "next" / "root-key.pem").read_bytes()
    (base / "root.pem").write_bytes((base / "next" / "root.pem").read_bytes())  # and here the machine stops
    Authority.open(base).parent_identity(INSTANCE_ID, REGION, NOW)
    assert (base / "root-key.pem").read_bytes() == key
    assert list((base / "next").iterdir()) == []


def test_the_chain_is_reused_while_it_is_fresh(authority: Authority, identity: ParentIdentity) -> None:
    """The same certificates for the same parent; another parent shares all but the last."""
    assert authority.parent_identity(INSTANCE_ID, REGION, NOW + timedelta(hours=17)).cabundle == identity.cabundle
    other = authority.parent_identity("i-" + "f" * 17, REGION, NOW)
    assert other.cabundle[:3] == identity.cabundle[:3]
    assert other.cabundle[3] != identity.cabundle[3]
    assert authority.parent_identity(INSTANCE_ID, "eu-west-1", NOW).cabundle[0] == identity.cabundle[0]


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        (timedelta(hours=18), 3),
        (timedelta(days=4), 3),
        (timedelta(days=5), 2),
        (timedelta(days=14), 1),
        (timedelta(days=40), 1),
        (timedelta(days=-1), None),
    ],
)
def test_each_authority_is_renewed_before_its_end(
    authority: Authority, identity: ParentIdentity, later: timedelta, kept: int | None
) -> None:
    """What is near its end is replaced together with everything below it; a root of the future signs nothing."""
    if kept is None:
        with pytest.raises(MachineError, match="cannot sign now"):
            authority.parent_identity(INSTANCE_ID, REGION, NOW + later)
        return
    renewed = authority.parent_identity(INSTANCE_ID, REGION, NOW + later)
    assert renewed.cabundle[:kept] == identity.cabundle[:kept]
    assert not set(renewed.cabundle[kept:]) & set(identity.cabundle)


@pytest.mark.parametrize("hours", range(0, 24 * 30, 7))
def test_a_chain_outlives_every_leaf_that_it_signs(authority: Authority, identity: ParentIdentity, hours: int) -> None:
    """At any time, all authorities are valid for a leaf's whole life and more."""
    now = NOW + timedelta(hours=hours)
    chain = [parse_certificate(data) for data in authority.parent_identity(INSTANCE_ID, REGION, now).cabundle]
    assert all(part.not_before <= now <= part.not_after - timedelta(hours=6) for part in chain)


def test_a_damaged_certificate_below_the_root_is_replaced(authority: Authority, identity: ParentIdentity) -> None:
    """What cannot be read is made anew; a damaged root is an error that says so, when it is needed."""
    base = authority.root_path.parent
    (base / REGION / "zonal.pem").write_bytes(b"rubbish")
    assert authority.parent_identity(INSTANCE_ID, REGION, NOW).cabundle[:2] == identity.cabundle[:2]
    regional = (base / REGION / "regional.pem").read_bytes()
    for wrong, why in ((b"rubbish", "neither a key"), (regional[regional.index(b"-----BEGIN PRIVATE") :], "belong")):
        (base / "root-key.pem").write_bytes(wrong)
        assert authority.parent_identity(INSTANCE_ID, REGION, NOW).cabundle[:2] == identity.cabundle[:2]
        with pytest.raises(MachineError, match=why):
            authority.parent_identity(INSTANCE_ID, "eu-west-1", NOW)
    (base / "root.pem").write_bytes(b"rubbish")
    with pytest.raises(MachineError, match=r"root\.pem"):
        Authority.load(base)


@pytest.mark.parametrize(
    ("instance", "region"), [("i-1", REGION), ("../x", REGION), (INSTANCE_ID, "../x"), (INSTANCE_ID, "retired")]
)
def test_names_that_are_paths_are_refused(authority: Authority, instance: str, region: str) -> None:
    """Ids become file names; only their one form is accepted."""
    with pytest.raises(UsageError):
        authority.parent_identity(instance, region, NOW)


def _cabundle(directory: Path) -> tuple[bytes, ...]:
    return Authority.open(directory).parent_identity(INSTANCE_ID, REGION, NOW).cabundle


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    """The lock makes one of them issue the chain, and the others read it."""
    Authority.create(tmp_path / "ca", NOW)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(_cabundle, [tmp_path / "ca"] * 8))) == 1


def test_the_default_instance_id_is_kept(tmp_path: Path) -> None:
    """EC2's own id where there is one, else a random one that stays."""
    tag = tmp_path / "tag"
    tag.write_text("i-00112233445566778\n")
    assert default_instance_id(tmp_path / "a", tag) == "i-00112233445566778"
    tag.write_text("Amazon EC2\n")
    made = default_instance_id(tmp_path / "a", tag)
    assert made == default_instance_id(tmp_path / "a", tmp_path / "absent")
    assert made != default_instance_id(tmp_path / "b", tag)


def test_a_document_verifies_below_the_authoritys_root(authority: Authority, identity: ParentIdentity) -> None:
    """From the state directory to the verifier."""
    attester = Attester(identity, ENCLAVE_ID)
    data = attester.document(PCRS, user_data=b"u", nonce=b"n", public_key=b"k", now=NOW)
    verified = verify(data, roots=[authority.root], policy=NoDebugMode(), at=NOW, nonce=b"n")
    assert verified.document.pcrs == PCRS
    assert (verified.document.user_data, verified.document.public_key) == (b"u", b"k")
    assert attester.instance_id == INSTANCE_ID
    assert data.startswith(bytes.fromhex("8444a1013822a059"))


def test_a_leaf_is_reused_and_renewed_well_before_its_end(identity: ParentIdentity) -> None:
    """The same leaf for 100 minutes, then another key; a clock that goes back gets a new leaf, too."""
    attester = Attester(identity, ENCLAVE_ID)
    minute = timedelta(minutes=1)
    leaves = [
        parse_document(document(attester, at)).certificate
        for at in (0 * minute, 99 * minute, 100 * minute, 99 * minute)
    ]
    assert leaves[0] == leaves[1]
    assert len(set(leaves)) == 3
    keys = {parse_certificate(leaf).public_key.public_numbers().x for leaf in leaves}
    assert len(keys) == 3


def test_the_parent_is_renewed_only_when_that_is_due(authority: Authority, identity: ParentIdentity) -> None:
    """`renew` asks for another identity six hours before the end, and documents go on verifying for days."""
    attester = Attester(identity, ENCLAVE_ID)
    asked = []

    for hour in range(0, 60, 5):
        now = NOW + timedelta(hours=hour)

        def load(now: object = now) -> ParentIdentity:
            asked.append(now)
            return authority.parent_identity(INSTANCE_ID, REGION, now)  # type: ignore[arg-type]

        attester.renew(load, now=now)
        verify(document(attester, timedelta(hours=hour)), roots=[authority.root], policy=NoDebugMode(), at=now)
    assert len(asked) == 2


def test_a_parent_that_ends_soon_signs_no_leaf(identity: ParentIdentity) -> None:
    """Without renewal there is an error, not a document that nobody accepts."""
    with pytest.raises(MachineError, match="too soon"):
        document(Attester(identity, ENCLAVE_ID), timedelta(hours=22))


def test_an_attester_keeps_to_its_parent(authority: Authority, identity: ParentIdentity) -> None:
    """The enclave's id names the parent, and a renewed identity is the same parent's."""
    for bad in ("i-1", "i-" + "f" * 17 + "-enc0123456789abcdef"):
        with pytest.raises(UsageError):
            Attester(identity, bad)
    other = authority.parent_identity("i-" + "f" * 17, REGION, NOW)
    with pytest.raises(UsageError, match="the parent is"):
        Attester(identity, ENCLAVE_ID).renew(lambda: other, now=NOW + timedelta(days=1))


def test_the_largest_request_still_fits_the_device(identity: ParentIdentity) -> None:
    """Three fields of 1024 bytes and 32 registers stay below the 0x3000 bytes of a response (nsm.md §7)."""
    pcrs = dict.fromkeys(range(32), bytes(48))
    data = Attester(identity, ENCLAVE_ID).document(
        pcrs, user_data=bytes(1024), nonce=bytes(1024), public_key=bytes(1024), now=NOW
    )
    assert len(data) < 0x3000
