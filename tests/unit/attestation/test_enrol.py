"""A fleet under one root: requests, answers, and what a parent refuses to install."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.attestation.chains import NOW, PCRS, REGION, rebuilt

from alcove.attestation import enrol, revocation
from alcove.attestation.attester import Attester
from alcove.attestation.authority import Authority
from alcove.attestation.crl import RevocationLists
from alcove.attestation.inventory import notices, take_inventory
from alcove.attestation.place import Level, Place
from alcove.attestation.policy import NoDebugMode
from alcove.attestation.store import Store
from alcove.attestation.verify import Root, VerifiedAttestation, verify
from alcove.errors import AlcoveError, AttestationError, InputError, MachineError, UsageError

ONE, TWO = Place(REGION, f"i-{1:017x}"), Place(REGION, f"i-{2:017x}")
HOUR = timedelta(hours=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", NOW)


@pytest.fixture
def parent(tmp_path: Path) -> Store:
    return Store(tmp_path / "one")


def enrolled(authority: Authority, store: Store, place: Place, level: Level = Level.REGIONAL) -> Authority:
    """A parent with its certificate."""
    name = f"parent-{place.instance_id[-1]}"
    chain = enrol.answer(authority, name, enrol.make_request(store, place), level, NOW)
    assert enrol.install(store, chain, place, NOW) is level
    return Authority.load(store.directory)


def proof(authority: Authority, place: Place, root: Root, now: timedelta = timedelta()) -> VerifiedAttestation:
    identity = authority.parent_identity(place.instance_id, place.region, NOW + now)
    attester = Attester(identity, f"{place.instance_id}-enc0123456789abcdef")
    data = attester.document(PCRS, user_data=None, nonce=None, public_key=None, now=NOW + now)
    return verify(data, roots=[root], policy=NoDebugMode(), at=NOW + now)


def test_one_root_is_enough_to_trust_a_fleet(authority: Authority, tmp_path: Path) -> None:
    """The authority's own enclaves and those of two parents verify below the one root; each has keys of its own."""
    parents = [enrolled(authority, Store(tmp_path / place.instance_id), place) for place in (ONE, TWO)]
    seen = [
        proof(where, place, authority.root)
        for where, place in [(authority, Place(REGION, f"i-{0:017x}")), *zip(parents, (ONE, TWO), strict=True)]
    ]
    regionals = {verified.certificates[1].der for verified in seen}
    assert len(regionals) == 3
    assert {verified.certificates[0].der for verified in seen} == {
        verified.certificates[0].der for verified in seen[:1]
    }


def test_no_private_key_travels(authority: Authority, parent: Store) -> None:
    """Neither request nor answer holds one, the authority never has the parent's, and on the parent it is 0600."""
    request = enrol.make_request(parent, ONE)
    path = parent.request_key_path(REGION)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_bytes()
    chain = enrol.answer(authority, "one", request, Level.REGIONAL, NOW)
    assert b"PRIVATE" not in request + chain
    enrol.install(parent, chain, ONE, NOW)
    assert not path.exists()
    assert key in parent.chain_path(REGION, "regional").read_bytes()
    held = b"".join(file.read_bytes() for file in authority.store.directory.rglob("*") if file.is_file())
    assert key.split(b"\n")[2] not in held


@pytest.mark.parametrize(
    ("level", "certificates", "hours"),
    [(Level.REGIONAL, 2, 20 * 24 - 4), (Level.ZONAL, 3, 5 * 24 + 9), (Level.INSTANCE, 4, 20)],
)
def test_a_level_lasts_as_long_as_its_certificate(
    authority: Authority, parent: Store, level: Level, certificates: int, hours: int
) -> None:
    """Documents until three hours before its end; then an error that tells what to do; a new answer brings more."""
    there = enrolled(authority, parent, ONE, level)
    chain = (authority.store.directory / "parents" / "parent-1.pem").read_bytes()
    assert chain.count(b"BEGIN CERTIFICATE") == certificates
    for hour in {0, hours // 2, hours}:
        assert proof(there, ONE, authority.root, hour * HOUR).certificates[0].common_name == "aws.nitro-enclaves"
    assert notices(parent, NOW) == []
    assert [notice.urgent for notice in notices(parent, NOW + hours * HOUR)] == [False]
    with pytest.raises(MachineError) as caught:
        there.parent_identity(ONE.instance_id, REGION, NOW + (hours + 3) * HOUR)
    assert "ca request" in str(caught.value.hint)
    assert [notice.urgent for notice in notices(parent, NOW + (hours + 3) * HOUR)] == [True]
    later = NOW + (hours + 3) * HOUR
    answer = enrol.answer(authority, "one", enrol.make_request(parent, ONE), level, later)
    enrol.install(parent, answer, ONE, later)
    proof(there, ONE, authority.root, (hours + 4) * HOUR)


def test_an_instance_certificate_is_for_one_name(authority: Authority, parent: Store) -> None:
    """With it a parent cannot be another, nor make issuers."""
    there = enrolled(authority, parent, ONE, Level.INSTANCE)
    for place, renew in ((TWO, frozenset[Level]()), (ONE, frozenset({Level.ZONAL}))):
        with pytest.raises(MachineError, match="not on this machine"):
            there.parent_identity(place.instance_id, REGION, NOW, renew=renew)


def test_a_request_is_repeated_until_it_is_answered(authority: Authority, parent: Store) -> None:
    """The same key each time, so that an answer on its way is not lost; after that another."""
    keys = [enrol.read_request(enrol.make_request(parent, ONE))[1].public_numbers() for _ in range(2)]
    assert keys[0] == keys[1]
    enrolled(authority, parent, ONE)
    assert enrol.read_request(enrol.make_request(parent, ONE))[1].public_numbers() != keys[0]


def csr(name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder(subject).sign(key, SHA384()).public_bytes(Encoding.PEM)


def test_requests_of_another_kind_are_refused(authority: Authority, parent: Store) -> None:
    """No request, another key or name, a signature that does not prove the key, too large; nothing is recorded."""
    key, good = ec.generate_private_key(ec.SECP384R1()), enrol.make_request(parent, ONE)
    name = f"{ONE.instance_id}.{REGION}.aws.nitro-enclaves"
    der = x509.load_pem_x509_csr(good).public_bytes(Encoding.DER)
    forged = x509.load_der_x509_csr(der[:-1] + bytes([der[-1] ^ 1])).public_bytes(Encoding.PEM)
    bad = [
        b"", b"rubbish", good[:-60], forged, bytes(enrol.MAX_REQUEST + 1),
        csr(name, ec.generate_private_key(ec.SECP256R1())),
        csr(name, rsa.generate_private_key(65537, 2048)),
        csr("../../etc", key), csr(name + "x", key), csr(f"i-1.{REGION}.aws.nitro-enclaves", key),
        csr(f"{ONE.instance_id}.{'r' * 21}.aws.nitro-enclaves", key),
        *(csr(f"{ONE.instance_id}.{folder}.aws.nitro-enclaves", key) for folder in ("retired", "next", "crl")),
        x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, SHA384()).public_bytes(Encoding.PEM),
    ]  # fmt: skip
    for data in bad:
        with pytest.raises(InputError):
            enrol.answer(authority, "one", data, Level.REGIONAL, NOW)
    for wrong in ("", "..", "../x", "a/b", ".hidden", "x" * 65, "a b"):
        with pytest.raises(UsageError, match="is no name"):
            enrol.answer(authority, wrong, good, Level.REGIONAL, NOW)
    assert not (authority.store.directory / "parents").exists()
    assert not (authority.store.directory / "issued").exists()


def test_answers_of_another_kind_are_refused(authority: Authority, parent: Store, tmp_path: Path) -> None:
    """Cut, turned round, with a broken link, for another, too late or without a request: nothing is installed."""
    request = enrol.make_request(parent, ONE)
    good = enrol.answer(authority, "one", request, Level.ZONAL, NOW)
    root, regional, zonal = x509.load_pem_x509_certificates(good)
    other = Authority.create(tmp_path / "other", NOW).certificate
    key = ec.generate_private_key(ec.SECP384R1())
    forged = x509.load_der_x509_certificate(rebuilt(zonal.public_bytes(Encoding.DER), key, {}))
    strange = enrol.answer(authority, "two", enrol.make_request(Store(tmp_path / "two"), ONE), Level.ZONAL, NOW)
    elsewhere = enrol.answer(authority, "three", csr(f"{ONE.instance_id}.eu-west-1.aws.nitro-enclaves", key),
                             Level.REGIONAL, NOW)  # fmt: skip

    def text(*certificates: x509.Certificate) -> bytes:
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)

    bad = [
        b"", b"rubbish", text(root), text(regional, zonal), text(root, zonal), text(zonal, regional, root),
        text(other, regional, zonal), text(root, regional, forged), text(root, regional, zonal, zonal),
        text(root, regional, zonal, zonal, zonal), strange, elsewhere, good + bytes(enrol.MAX_ANSWER),
    ]  # fmt: skip
    for data in bad:
        with pytest.raises(InputError):
            enrol.install(parent, data, ONE, NOW)
    for time in (NOW - timedelta(days=1), NOW + timedelta(days=6)):
        with pytest.raises(InputError, match="not valid now"):
            enrol.install(parent, good, ONE, time)
    with pytest.raises(UsageError, match="has not asked"):
        enrol.install(Store(tmp_path / "nobody"), good, ONE, NOW)
    assert not parent.root_path.exists()
    assert parent.regions() == []
    enrol.install(parent, good, ONE, NOW)


def test_a_parent_gives_up_its_own_root_only_when_told(authority: Authority, parent: Store) -> None:
    """Its first enclave made one; that becomes a former root, still trusted there, without its key."""
    own = Authority.create(parent.directory, NOW)
    before = proof(own, ONE, own.root)
    chain = enrol.answer(authority, "one", enrol.make_request(parent, ONE), Level.REGIONAL, NOW)
    with pytest.raises(UsageError, match="has another root"):
        enrol.install(parent, chain, ONE, NOW)
    assert Authority.load(parent.directory).root == own.root
    enrol.install(parent, chain, ONE, NOW, replace_root=True)
    there = Authority.load(parent.directory)
    assert there.trusted == (authority.root, own.root)
    assert not parent.root_key_path.exists()
    after = proof(there, ONE, authority.root)
    assert not {c.der for c in before.certificates} & {c.der for c in after.certificates}


def test_a_parent_that_was_revoked_is_refused(authority: Authority, parent: Store, tmp_path: Path) -> None:
    """By its name here; the list ends its chain and no other parent's."""
    there, other = enrolled(authority, parent, ONE), enrolled(authority, Store(tmp_path / "two"), TWO)
    revocation.revoke(authority, revocation.find_certificate(authority.store, "parent-1"), NOW)
    lists = RevocationLists.from_files(*(path.read_bytes() for path in authority.store.crl_paths()))
    with pytest.raises(AttestationError, match=r"was revoked by aws\.nitro-enclaves"):
        lists.check(proof(there, ONE, authority.root).certificates, NOW)
    lists.check(proof(other, TWO, authority.root).certificates, NOW)


def test_a_parent_cannot_do_what_needs_the_root(authority: Authority, parent: Store) -> None:
    """It signs no revocation list of the root and renews no regional certificate; the error says where to go."""
    there = enrolled(authority, parent, ONE)
    there.parent_identity(ONE.instance_id, REGION, NOW)
    problem = revocation.refresh(there, NOW)
    assert isinstance(problem, AlcoveError)
    assert "not on this machine" in problem.message
    assert len(parent.crl_paths()) == 2
    with pytest.raises(MachineError, match="not on this machine"):
        there.parent_identity(ONE.instance_id, REGION, NOW, renew=frozenset(Level))
    inventory = take_inventory(parent, NOW)
    assert inventory["Root"]["Key"] == {"Kind": "another machine", "Where": ""}
    assert [row["Level"] for row in inventory["Chains"][0]["Certificates"]] == ["regional", "zonal", "instance"]
    assert [row["Parent"] for row in take_inventory(authority.store, NOW)["Parents"]] == ["parent-1"]
