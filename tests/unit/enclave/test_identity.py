"""How an enclave's supervisor finds its parent's identity, and notices when that has changed."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import resource
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from alcove.attestation import enrol, revocation
from alcove.attestation.attester import Attester
from alcove.attestation.authority import Authority
from alcove.attestation.document import parse_document
from alcove.attestation.files import locked
from alcove.attestation.place import Level
from alcove.attestation.private_memory import forbid_core_dumps
from alcove.attestation.root_key import NewKey
from alcove.attestation.store import Store
from alcove.enclave.identity import ParentSource, authority_check, initial_pcrs, place
from alcove.enclave.paths import Paths
from alcove.errors import MachineError
from alcove.types import Measurements

PASSPHRASE = b"correct horse battery staple"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "ALCOVE_CA_PASSPHRASE", "ALCOVE_CA_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    return Paths(tmp_path / "state", tmp_path / "run", tmp_path / "etc")


class Running:
    """What a supervisor does with its parent's identity."""

    def __init__(self, paths: Paths) -> None:
        self.source = ParentSource(paths)
        parent = self.source.load()
        self.attester = Attester(parent, f"{parent.instance_id}-enc0123456789abcdef")

    def chain(self) -> tuple[bytes, ...]:
        """The certificates of a document that is made now."""
        now = datetime.now(UTC)
        self.attester.renew(self.source.load, now=now, changed=self.source.changed)
        made = parse_document(
            self.attester.document({0: bytes(48)}, user_data=None, nonce=None, public_key=None, now=now)
        )
        return (*made.cabundle, made.certificate)


def test_registers_at_boot_are_the_image_and_the_parent() -> None:
    """PCR3 is the role's ARN, PCR4 the parent's id, each a raw extend (eif.md §2); the others are measured or zero."""
    image = Measurements(pcr0=b"0" * 48, pcr1=b"1" * 48, pcr2=b"2" * 48, pcr8=b"8" * 48)
    role, parent = "arn:aws:iam::123456789012:role/web", "i-0123456789abcdef0"
    pcrs = initial_pcrs(image, parent, debug_mode=False, parent_role=role)
    assert [pcrs[index][:1] for index in (0, 1, 2, 8)] == [b"0", b"1", b"2", b"8"]
    assert pcrs[3] == hashlib.sha384(bytes(48) + role.encode()).digest()
    assert pcrs[4] == hashlib.sha384(bytes(48) + parent.encode()).digest()
    assert {index for index, value in pcrs.items() if any(value)} == {0, 1, 2, 3, 4, 8}
    assert len(pcrs) == 32
    assert not any(initial_pcrs(image, parent, debug_mode=False)[3])


def test_debug_mode_hides_the_image_and_not_the_parent() -> None:
    """PCR0, 1, 2 and 8 are zero; PCR3 and PCR4 keep their values (nsm.md §6.1)."""
    image = Measurements(pcr0=b"0" * 48, pcr1=b"1" * 48, pcr2=b"2" * 48, pcr8=b"8" * 48)
    pcrs = initial_pcrs(image, "i-0123456789abcdef0", debug_mode=True, parent_role="arn:aws:iam::1:role/web")
    assert {index for index, value in pcrs.items() if any(value)} == {3, 4}


def test_between_two_looks_nothing_has_changed(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look is good for as long as was asked for, and the next one sees the change."""
    now = time.monotonic()
    monkeypatch.setattr("alcove.enclave.identity.time.monotonic", lambda: now)
    ParentSource(paths).load()  # makes the root
    source = ParentSource(paths, look_seconds=0.3)
    source.load()
    assert not source.changed
    Store(paths.authority).root_path.touch()
    now += 0.29
    assert not source.changed
    now += 0.02
    assert source.changed


def test_the_first_use_makes_a_root(paths: Paths) -> None:
    """Without a word about authorities there is one, and documents come from it."""
    assert authority_check(paths).detail.startswith("no root yet")
    running = Running(paths)
    assert running.chain()[0] == Authority.load(paths.authority).store.root().public_bytes(Encoding.DER)
    check = authority_check(paths)
    assert check.ok
    assert "key: file" in check.detail


def test_a_running_enclave_uses_what_was_rotated(paths: Paths) -> None:
    """Chain and leaf are new in the next document; without a change they are the same, and nothing is read."""
    running = Running(paths)
    before = running.chain()
    running.chain()
    assert not running.source.changed
    assert running.chain() == before
    here = place(paths)
    Authority.load(paths.authority).parent_identity(
        here.instance_id, here.region, datetime.now(UTC), renew=frozenset(Level)
    )
    assert running.source.changed
    after = running.chain()
    assert after[0] == before[0]
    assert not set(after[1:]) & set(before[1:])
    running.chain()
    assert not running.source.changed


def test_a_running_enclave_leaves_what_was_revoked(paths: Paths) -> None:
    """The next document has another zonal certificate."""
    running = Running(paths)
    before = running.chain()
    authority = Authority.load(paths.authority)
    path = authority.store.chain_path(place(paths).region, "zonal")
    revocation.revoke(authority, revocation.find_certificate(authority.store, str(path)), datetime.now(UTC))
    after = running.chain()
    assert after[:2] == before[:2]
    assert not set(after[2:]) & set(before[2:])


def test_a_running_enclave_does_not_wait_for_a_command(paths: Paths) -> None:
    """While one is at work on the files, or was stopped there, documents go on as before; then they are renewed."""
    running = Running(paths)
    before = running.chain()
    here = place(paths)
    authority = Authority.load(paths.authority)
    authority.parent_identity(here.instance_id, here.region, datetime.now(UTC), renew=frozenset(Level))
    with locked(paths.authority):
        assert running.chain() == before
        with pytest.raises(MachineError, match="in use"), locked(paths.authority, wait=False):
            pass
    assert not set(running.chain()[1:]) & set(before[1:])


def test_a_running_enclave_goes_on_when_nothing_can_be_renewed(paths: Paths) -> None:
    """A file that is damaged while the root's key is away stops new enclaves, and none that has a certificate."""
    Authority.create(paths.authority, key=NewKey(passphrase=PASSPHRASE))
    here = place(paths)
    Authority.load(paths.authority, PASSPHRASE).parent_identity(here.instance_id, here.region, datetime.now(UTC))
    running = Running(paths)
    before = running.chain()
    (paths.authority / here.region / "regional.pem").write_bytes(b"rubbish")
    assert running.chain() == before
    with pytest.raises(Exception, match="protected by a passphrase"):
        Running(paths)


def test_a_running_enclave_follows_its_parent_to_another_root(paths: Paths, tmp_path: Path) -> None:
    """After `ca install` the next document is below the fleet's root."""
    running = Running(paths)
    before = running.chain()
    fleet = Authority.create(tmp_path / "fleet")
    store, here, now = Store(paths.authority), place(paths), datetime.now(UTC)
    answer = enrol.answer(fleet, "one", enrol.make_request(store, here), Level.REGIONAL, now)
    enrol.install(store, answer, here, now, replace_root=True)
    after = running.chain()
    assert not set(after) & set(before)
    assert Authority.load(paths.authority).root == fleet.root


def test_the_doctor_speaks_of_what_needs_a_person(paths: Paths) -> None:
    """Well with a warning in the last week of a regional certificate, not well after it; damage is not well."""
    here = place(paths)
    for days, well, said in ((15, True, "soon: "), (21, False, "ended at")):
        past = datetime.now(UTC) - timedelta(days=days)
        shutil.rmtree(paths.authority, ignore_errors=True)
        authority = Authority.create(paths.authority, past, key=NewKey(passphrase=PASSPHRASE))
        authority.parent_identity(here.instance_id, here.region, past)
        check = authority_check(paths)
        assert check.ok is well
        assert said in check.detail
        assert "ca rotate" in f"{check.detail} {check.hint}"
    (paths.authority / "root.pem").write_bytes(b"rubbish")
    check = authority_check(paths)
    assert not check.ok
    assert "damaged" in check.detail


def _guarded(results: multiprocessing.Queue[tuple[int, tuple[int, int]]]) -> None:
    forbid_core_dumps()
    dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
    results.put((dumpable, resource.getrlimit(resource.RLIMIT_CORE)))


def test_processes_with_keys_dump_no_core() -> None:
    """Neither to a file nor to a program."""
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[int, tuple[int, int]]] = context.Queue()
    process = context.Process(target=_guarded, args=(results,))
    process.start()
    assert results.get(timeout=30) == (0, (0, 0))
    process.join(30)
