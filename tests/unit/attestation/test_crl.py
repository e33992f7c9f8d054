"""Revocation, from the issuer's list to the verifier's decision."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.attestation.chains import INSTANCE_ID, NOW, REGION, World, make_world, rebuilt, tlv

from alcove.attestation import pki, revocation
from alcove.attestation.authority import Authority
from alcove.attestation.certificate import Certificate, parse_certificate
from alcove.attestation.crl import MAX_FILE, MAX_LISTS, RevocationLists
from alcove.attestation.place import Level
from alcove.errors import AttestationError, InputError, MachineError, UsageError

DAY = timedelta(days=1)


def chain(world: World) -> list[Certificate]:
    return [parse_certificate(data) for data in (*world.cabundle, world.leaf)]


def entry(serial: int) -> x509.RevokedCertificate:
    return x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW + 9 * DAY).build()


def made(issuer: pki.Issuer, *serials: int, now: timedelta = timedelta(), life: timedelta = DAY) -> bytes:
    revoked = [entry(serial) for serial in serials]
    return pki.issue_crl(issuer, revoked, number=1, now=NOW + now, life=life).public_bytes(Encoding.DER)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_revoked_certificate_ends_its_chain(world: World, level: int) -> None:
    """On the list of its own issuer it is refused at step 10, whatever the date beside it; other serials are not."""
    below = chain(world)[level + 1]
    RevocationLists.from_files(made(world.issuers[level], below.serial + 1)).check(chain(world), NOW)
    with pytest.raises(AttestationError, match=r"was revoked by") as caught:
        RevocationLists.from_files(made(world.issuers[level], 5, below.serial)).check(chain(world), NOW)
    assert caught.value.step == 10
    assert below.common_name in caught.value.message


def test_a_serial_number_counts_only_with_its_issuer(world: World) -> None:
    """The regional's serial number on the zonal's list means another certificate."""
    RevocationLists.from_files(made(world.issuers[2], chain(world)[1].serial)).check(chain(world), NOW)


def test_the_twin_of_a_signature_does_not_escape(world: World) -> None:
    """Another signature over the same instance certificate is the same revoked certificate."""
    twin = rebuilt(world.cabundle[3], world.issuers[2].key, {})  # type: ignore[arg-type]
    assert twin != world.cabundle[3]
    certificates = [*chain(world)[:3], parse_certificate(twin), chain(world)[4]]
    lists = RevocationLists.from_files(made(world.issuers[2], certificates[3].serial))
    with pytest.raises(AttestationError, match="was revoked"):
        lists.check(certificates, NOW)


def test_a_list_is_good_until_its_next_update(world: World) -> None:
    """Its last second included; the newest list of an issuer counts, and what any of them revoked stays revoked."""
    root, serial = world.issuers[0], chain(world)[1].serial
    lists = RevocationLists.from_files(made(root))
    end = NOW.replace(microsecond=0) + DAY
    lists.check(chain(world), end)
    with pytest.raises(AttestationError, match="ran out at 2026-03-05") as caught:
        lists.check(chain(world), end + timedelta(seconds=1))
    assert caught.value.step == 10
    RevocationLists.from_files(made(root), made(root, now=DAY)).check(chain(world), end + DAY / 2)
    with pytest.raises(AttestationError, match="was revoked"):
        RevocationLists.from_files(made(root, serial), made(root, now=DAY)).check(chain(world), end + DAY / 2)


def test_a_list_from_after_an_archived_document_is_used(world: World) -> None:
    """What is known later counts for what was signed earlier."""
    lists = RevocationLists.from_files(made(world.issuers[0], chain(world)[1].serial, now=9 * DAY))
    with pytest.raises(AttestationError, match="was revoked"):
        lists.check(chain(world), NOW)


def test_a_forged_list_is_an_error_and_not_ignored(world: World) -> None:
    """A flipped bit in the signed part, or a stranger's signature under our key's identifier, is refused each time."""
    data = bytearray(made(world.issuers[0], 0xABCDEF))
    data[data.index(bytes.fromhex("abcdef")) + 2] ^= 1
    lists = RevocationLists.from_files(bytes(data))
    for _ in range(2):
        with pytest.raises(AttestationError, match="not signed by it"):
            lists.check(chain(world), NOW)


def test_another_root_of_the_same_name_is_no_forger(world: World) -> None:
    """Roots share their name; a list that names another key is passed over."""
    other = make_world()
    lists = RevocationLists.from_files(made(other.issuers[0], chain(world)[1].serial), made(world.issuers[0]))
    lists.check(chain(world), NOW)
    assert len(lists) == 2


def test_an_instance_signs_no_lists(world: World) -> None:
    """Its keyUsage lacks cRLSign."""
    with pytest.raises(AttestationError, match="may not sign revocation lists"):
        RevocationLists.from_files(made(world.issuers[3], 7)).check(chain(world), NOW)


def test_files_hold_one_list_or_many(world: World) -> None:
    """DER, PEM, or several PEM blocks with text between them."""
    pems = [
        pki.issue_crl(issuer, [], number=3, now=NOW, life=DAY).public_bytes(Encoding.PEM)
        for issuer in world.issuers[:3]
    ]
    lists = RevocationLists.from_files(made(world.issuers[0]), pems[0], b"root\n" + pems[1] + b"zone\n" + pems[2])
    assert len(lists) == 4
    lists.check(chain(world), NOW)


def test_no_list_of_a_damaged_file_is_lost(world: World) -> None:
    """A block whose first or last line is missing, cut or misspelt makes the file none; so does a cut in a block."""
    pems = [
        pki.issue_crl(issuer, [], number=3, now=NOW, life=DAY).public_bytes(Encoding.PEM)
        for issuer in world.issuers[:3]
    ]
    lines = b"".join(pems).splitlines(keepends=True)
    assert len(RevocationLists.from_files(b"".join(lines))) == 3
    for at in (at for at, line in enumerate(lines) if line.startswith(b"-----")):
        for damaged in (b"", lines[at][:-3] + b"\n", lines[at].replace(b"CRL", b"CRX")):
            with pytest.raises(InputError):
                RevocationLists.from_files(b"".join([*lines[:at], damaged, *lines[at + 1 :]]))
    for end in range(len(pems[0]) + 10, len(pems[0] + pems[1]) - 3, 37):
        with pytest.raises(InputError):
            RevocationLists.from_files(b"".join(pems)[:end])


def test_lists_of_another_kind_are_refused(world: World) -> None:
    """Version 1, no end, another digest, critical extensions, too much: an InputError before anything is judged."""
    issuer = world.issuers[0]
    start = NOW.replace(microsecond=0)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(start)
        .next_update(start + DAY)
    )
    delta = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
    key = issuer.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    good = builder.sign(key, SHA384()).public_bytes(Encoding.DER)
    RevocationLists.from_files(good)
    bad = [
        b"", b"rubbish", good + b"\0", good[:-1], world.leaf, b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----",
        delta.sign(key, SHA384()).public_bytes(Encoding.DER),
        builder.sign(key, SHA256()).public_bytes(Encoding.DER),
        bytes(MAX_FILE + 1),
    ]  # fmt: skip
    for data in bad:
        with pytest.raises(InputError):
            RevocationLists.from_files(data)
    with pytest.raises(InputError, match="65 revocation lists"):
        RevocationLists.from_files(*[good] * (MAX_LISTS + 1))
    without_end = tlv(
        0x30, b"".join([bytes.fromhex("020101300a06082a8648ce3d040303"), b"0\0", b"\x17\x0d260304050607Z"])
    )
    with pytest.raises(InputError, match="when it runs out"):
        RevocationLists.from_files(tlv(0x30, without_end + bytes.fromhex("300a06082a8648ce3d040303") + b"\x03\x02\0\0"))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_change_of_a_list_is_refused_or_passed_over(position: int, flip: int) -> None:
    """A changed byte gives an InputError, an AttestationError, or a list for somebody else; never a lost revocation."""
    data = bytearray(LIST)
    data[position % len(data)] ^= flip
    try:
        RevocationLists.from_files(bytes(data)).check(CHAIN, NOW)
    except (InputError, AttestationError):
        return
    assert NAME not in data or SKI not in data


WORLD = make_world()
CHAIN = chain(WORLD)
ISSUER = WORLD.issuers[0]
LIST = made(ISSUER, CHAIN[1].serial)
NAME = ISSUER.certificate.subject.public_bytes()
SKI = ISSUER.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority.create(tmp_path / "ca", NOW)
    made.parent_identity(INSTANCE_ID, REGION, NOW)
    return made


def lists_of(authority: Authority) -> RevocationLists:
    return RevocationLists.from_files(*(path.read_bytes() for path in authority.store.crl_paths()))


def parsed(authority: Authority, *, now: timedelta = timedelta()) -> list[Certificate]:
    identity = authority.parent_identity(INSTANCE_ID, REGION, NOW + now)
    return [parse_certificate(data) for data in identity.cabundle]


@pytest.mark.parametrize("level", [*Level])
def test_what_is_revoked_is_refused_and_replaced(authority: Authority, level: Level) -> None:
    """The verifier refuses the old chain, this machine makes another by itself, and that one passes."""
    old = parsed(authority)
    index = 1 + [*Level].index(level)
    name = INSTANCE_ID if level is Level.INSTANCE else level
    found = revocation.find_certificate(authority.store, str(authority.store.chain_path(REGION, name)))
    assert found.serial_number == old[index].serial
    revocation.revoke(authority, found, NOW, reason=x509.ReasonFlags.key_compromise)
    with pytest.raises(AttestationError, match=f"{old[index].common_name} was revoked"):
        lists_of(authority).check(old, NOW)
    new = parsed(authority)
    assert new[:index] == old[:index]
    assert not {certificate.serial for certificate in new[index:]} & {certificate.serial for certificate in old}
    lists_of(authority).check(new, NOW)


def test_lists_grow_and_are_numbered(authority: Authority) -> None:
    """A list that is signed anew keeps its entries; one whose issuer's key is gone ends and goes."""
    zonal = authority.store.chain_path(REGION, "zonal")
    first = parsed(authority)[3]
    path = revocation.revoke(authority, revocation.find_certificate(authority.store, f"{first.serial:x}"), NOW)
    second = parsed(authority)[3]
    revocation.revoke(authority, revocation.find_certificate(authority.store, f"{second.serial:X}"), NOW)
    assert revocation.refresh(authority, NOW) is None
    crl = revocation.read_list(path)
    assert {entry.serial_number for entry in crl} == {first.serial, second.serial}
    assert revocation.number_of(crl) == 3
    assert len(authority.store.crl_paths()) == 3
    zonal.unlink()
    assert revocation.refresh(authority, NOW + 31 * DAY) is None
    assert path not in authority.store.crl_paths()


def test_what_was_not_issued_here_is_not_revoked_here(authority: Authority, world: World, tmp_path: Path) -> None:
    """A stranger's certificate, a root, an enclave's, a serial number and a file that mean nothing."""
    for certificate, why in (
        (world.issuers[1].certificate, "issuer of"),
        (authority.certificate, "cannot revoke itself"),
    ):
        with pytest.raises(UsageError, match=why):
            revocation.revoke(authority, certificate, NOW)
    identity = authority.parent_identity(INSTANCE_ID, REGION, NOW)
    leaf = pki.issue_leaf(
        identity.issuer, ec.generate_private_key(ec.SECP384R1()).public_key(),
        region=REGION, enclave_id=f"{INSTANCE_ID}-enc0123456789abcdef", now=NOW,
    )  # fmt: skip
    with pytest.raises(UsageError, match="within three hours"):
        revocation.revoke(authority, leaf, NOW)
    (tmp_path / "file").write_bytes(b"rubbish")
    for text in ("abc", "../x", "", str(tmp_path / "file"), str(tmp_path / "absent")):
        with pytest.raises(UsageError):
            revocation.find_certificate(authority.store, text)
    assert authority.store.crl_paths() == []


def test_a_list_that_somebody_changed_is_not_signed_again(authority: Authority) -> None:
    """Entries are taken over only from a list that bears our signature."""
    certificate = revocation.find_certificate(authority.store, str(authority.store.chain_path(REGION, "regional")))
    path = revocation.revoke(authority, certificate, NOW)
    stranger = pki.issue_root(ec.generate_private_key(ec.SECP384R1()), serial=9, now=NOW)
    path.write_bytes(pki.issue_crl(stranger, [], number=9, now=NOW, life=DAY).public_bytes(Encoding.PEM))
    problem = revocation.refresh(authority, NOW)
    assert isinstance(problem, MachineError)
    assert "was not signed by" in problem.message
