from __future__ import annotations

import shutil
import subprocess
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.attestation.chains import ENCLAVE_ID, INSTANCE_ID, NOW, REGION, World

from alcove.attestation import names, pki
from alcove.attestation.certificate import Certificate, parse_certificate
from alcove.attestation.document import parse_document
from alcove.codec import der
from alcove.errors import UsageError

SPLIT = 5  # certificates in a chain


def chain(world: World) -> list[Certificate]:
    return [parse_certificate(data) for data in (*world.cabundle, world.leaf)]


def shape(data: bytes) -> list[object]:
    """What certificates of one level have in common: tags of names, extensions with their criticality, key usage."""
    tbs = der.parse(data).children(der.SEQUENCE, "certificate")[0].children(der.SEQUENCE, "tbs")
    names = [
        [(attribute.children(0x30, "a")[0].raw, attribute.children(0x30, "a")[1].tag)]
        for name in (tbs[3], tbs[5])
        for part in name.children(0x30, "name")
        for attribute in part.children(0x31, "part")
    ]
    extensions = []
    for extension in tbs[7].children(0xA3, "x")[0].children(0x30, "x"):
        fields = extension.children(0x30, "x")
        identifier = fields[0].raw
        fixed = identifier[2:] in {bytes.fromhex("551d13"), bytes.fromhex("551d0f")}
        extensions.append((identifier, len(fields), fields[-1].content if fixed else b""))
    # thirty years from now a UTCTime cannot say, so RFC 5280 §4.1.2.5 asks for GeneralizedTime
    times = [{der.GENERALIZED_TIME: der.UTC_TIME}.get(time.tag, time.tag) for time in tbs[4].children(0x30, "validity")]
    return [tbs[0].raw, tbs[2].raw, names, times, extensions, tbs[6].raw[:24]]


@pytest.mark.parametrize("level", range(SPLIT))
def test_our_certificates_have_the_shape_of_real_ones(aws: Path, world: World, level: int) -> None:
    """Name attributes, their order and string types, extensions, their order, criticality and values are AWS's."""
    real = parse_document((aws / "aws-2025-04-29-pcr16.cbor").read_bytes())
    ours = [*world.cabundle, world.leaf]
    assert shape(ours[level]) == shape([*real.cabundle, real.certificate][level])


def test_names_tell_who_is_who(world: World) -> None:
    """Common names of attestation.md §4.1; a leaf's lacks the long ending."""
    assert [certificate.common_name for certificate in chain(world)] == [
        "aws.nitro-enclaves",
        f"5a195aa34ee0a5b2.{REGION}.aws.nitro-enclaves",
        f"5a195aa34ee0a5b2.zonal.{REGION}.aws.nitro-enclaves",
        f"{INSTANCE_ID}.{REGION}.aws.nitro-enclaves",
        f"{ENCLAVE_ID}.{REGION}.aws",
    ]


def test_lives_are_the_platforms(world: World) -> None:
    """30 years and an hour, 20 d 1 h, 5 d 14 h, 24 h, and 3 h 3 s that begin 3 s before the issue."""
    lives = [certificate.not_after - certificate.not_before for certificate in chain(world)]
    assert lives[1:] == [
        timedelta(days=20, hours=1),
        timedelta(days=5, hours=14),
        timedelta(hours=24),
        timedelta(hours=3, seconds=3),
    ]
    assert chain(world)[4].not_before == NOW.replace(microsecond=0) - timedelta(seconds=3)
    root = chain(world)[0]
    assert root.not_before == NOW.replace(microsecond=0) - timedelta(hours=1)
    assert root.not_after == NOW.replace(year=NOW.year + 30, microsecond=0)


def test_the_leafs_serial_number_tells_slot_and_time(world: World) -> None:
    """Slot, four zero bytes, Unix seconds of the issue."""
    assert f"{chain(world)[4].serial:032x}" == f"018e7aa61e2040ff00000000{int(NOW.timestamp()):08x}"


def test_every_certificate_fits_into_a_document(world: World) -> None:
    """Verifiers in the field refuse more than 1024 bytes; the longest Region still fits."""
    assert all(len(data) < 1024 for data in (*world.cabundle, world.leaf))
    region = "r" * 20
    instance = world.issuers[3]
    leaf = pki.issue_leaf(instance, world.leaf_key.public_key(), region=region, enclave_id=ENCLAVE_ID, now=NOW)
    assert len(leaf.public_bytes(Encoding.DER)) < 1024


def test_times_count_in_utc(world: World) -> None:
    """A time in another zone is the same time."""
    local = datetime.fromisoformat("2026-03-04T10:06:07+05:00")
    leaf = pki.issue_leaf(
        world.issuers[3], world.leaf_key.public_key(), region=REGION, enclave_id=ENCLAVE_ID, now=local
    )
    assert leaf.not_valid_before_utc == NOW.replace(microsecond=0) - timedelta(seconds=3)


@pytest.mark.parametrize("text", ["", "us-east-1\n", "US", "a" * 21, "a.b", "../x"])
def test_regions_fit_into_names_and_paths(text: str) -> None:
    """At most 20 letters, digits and hyphens."""
    with pytest.raises(UsageError):
        names.check_region(text)


@pytest.mark.parametrize("text", ["", "i-1", "i-0123456789ABCDEF0", "i-0123456789abcdef01", "x", INSTANCE_ID + "\n"])
def test_ids_have_one_form(text: str) -> None:
    """17 hexadecimal digits for an instance, 16 more for an enclave."""
    with pytest.raises(UsageError):
        names.check_instance_id(text)
    with pytest.raises(UsageError):
        names.split_enclave_id(text)


def test_the_library_agrees_with_every_link(world: World) -> None:
    """`cryptography`'s own check of names and signatures passes for each link."""
    certificates = [x509.load_der_x509_certificate(data) for data in (*world.cabundle, world.leaf)]
    for parent, child in pairwise(certificates):
        child.verify_directly_issued_by(parent)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_the_chain(world: World, tmp_path: Path) -> None:
    """A verifier of another make finds the leaf valid below the root."""
    pem = [issuer.certificate.public_bytes(Encoding.PEM) for issuer in world.issuers]
    (tmp_path / "root.pem").write_bytes(pem[0])
    (tmp_path / "between.pem").write_bytes(b"".join(pem[1:]))
    leaf = x509.load_der_x509_certificate(world.leaf).public_bytes(Encoding.PEM)
    (tmp_path / "leaf.pem").write_bytes(leaf)
    result = subprocess.run(
        ["openssl", "verify", "-attime", str(int(NOW.timestamp())), "-CAfile", "root.pem",
         "-untrusted", "between.pem", "leaf.pem"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout.strip()) == (0, "leaf.pem: OK"), result.stderr
