"""Our certificates as OpenSSL prints and judges them, beside AWS's table (attestation.md §4.1)."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.attestation.chains import ENCLAVE_ID, INSTANCE_ID, NOW, REGION

from alcove.attestation import pki, revocation
from alcove.attestation.authority import Authority
from alcove.attestation.names import Organization
from alcove.attestation.store import pem

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

HEX16 = "[0-9a-f]{16}"
BASIC, USAGE, SKI, AKI, CRL = (
    "X509v3 Basic Constraints", "X509v3 Key Usage", "X509v3 Subject Key Identifier", "X509v3 Authority Key Identifier",
    "X509v3 CRL Distribution Points",
)  # fmt: skip
SIGNS = "Digital Signature, Certificate Sign, CRL Sign"


@dataclass(frozen=True)
class Row:
    """A column of the table: what OpenSSL must print; `extensions` in their order, name → (critical, value)."""

    subject: str
    serial_bytes: int
    life: timedelta
    extensions: dict[str, tuple[bool, str]]
    backdate: timedelta


URI = r"Full Name: URI:http://(crl-[a-z0-9-]+\.)?crl\.alcove\.invalid/crl/[0-9a-f-]{36}\.crl"
TABLE = {
    "root": Row(
        r"C=US, O=Amazon, OU=AWS, CN=aws\.nitro-enclaves",
        16,
        datetime(NOW.year + 30, 1, 1, tzinfo=UTC) - datetime(NOW.year, 1, 1, tzinfo=UTC) + timedelta(hours=1),
        {BASIC: (True, "CA:TRUE"), SKI: (False, "SKI"), USAGE: (True, SIGNS)},
        timedelta(hours=1),
    ),
    "regional": Row(
        rf"C=US, O=Amazon, OU=AWS, CN={HEX16}\.{REGION}\.aws\.nitro-enclaves",
        16,
        timedelta(days=20, hours=1),
        {
            BASIC: (True, "CA:TRUE, pathlen:2"),
            AKI: (False, "AKI"),
            SKI: (False, "SKI"),
            USAGE: (True, SIGNS),
            CRL: (False, URI),
        },
        timedelta(hours=1),
    ),
    "zonal": Row(
        rf"CN={HEX16}\.zonal\.{REGION}\.aws\.nitro-enclaves, OU=AWS, O=Amazon, C=US, ST=WA, L=Seattle",
        16,
        timedelta(days=5, hours=14),
        {
            BASIC: (True, "CA:TRUE, pathlen:1"),
            AKI: (False, "AKI"),
            SKI: (False, "SKI"),
            USAGE: (True, SIGNS),
            CRL: (False, URI),
        },
        timedelta(hours=1),
    ),
    "instance": Row(
        rf"C=US, ST=Washington, L=Seattle, O=Amazon, OU=AWS, CN={INSTANCE_ID}\.{REGION}\.aws\.nitro-enclaves",
        20,
        timedelta(hours=24),
        {
            BASIC: (True, "CA:TRUE, pathlen:0"),
            USAGE: (True, "Certificate Sign"),
            SKI: (False, "SKI"),
            AKI: (False, "AKI"),
        },
        timedelta(minutes=1),
    ),
    "leaf": Row(
        rf"C=US, ST=Washington, L=Seattle, O=Amazon, OU=AWS, CN={ENCLAVE_ID}\.{REGION}\.aws",
        16,
        timedelta(hours=3, seconds=3),
        {BASIC: (True, "CA:FALSE"), USAGE: (False, "Digital Signature, Non Repudiation")},
        timedelta(seconds=3),
    ),
}
LEVELS = list(TABLE)


def openssl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["openssl", *arguments], cwd=cwd, capture_output=True, text=True, check=False, env={"TZ": "UTC"}
    )


def write_chain(directory: Path, owner: Organization | None = None) -> Authority:
    """root.pem … leaf.pem of a real authority, and between.pem with all issuers below the root."""
    authority = Authority.create(directory / "ca", NOW, owner=owner)
    identity = authority.parent_identity(INSTANCE_ID, REGION, NOW)
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    leaf = pki.issue_leaf(identity.issuer, key, region=REGION, enclave_id=ENCLAVE_ID, now=NOW)
    certificates = [*map(x509.load_der_x509_certificate, identity.cabundle), leaf]
    for level, certificate in zip(LEVELS, certificates, strict=True):
        (directory / f"{level}.pem").write_bytes(pem(certificate))
    (directory / "between.pem").write_bytes(b"".join(map(pem, certificates[1:-1])))
    return authority


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `openssl x509 -text` says of each level."""
    directory = tmp_path_factory.mktemp("chain")
    write_chain(directory)
    options = ("-noout", "-text", "-nameopt", "sep_comma_plus_space")
    texts = {level: openssl("x509", "-in", f"{level}.pem", *options, cwd=directory).stdout for level in LEVELS}
    assert all(texts.values())
    return texts


def field(text: str, name: str) -> str:
    """The rest of the line that begins with `name`, or the lines below it when that is empty."""
    found = re.search(rf"^ *{name} *:? ?(?P<rest>.*)\n(?P<below>(?: {{12,}}.*\n)*)", text, re.MULTILINE)
    assert found, name
    return found["rest"].strip() or " ".join(found["below"].split())


def extensions(text: str) -> dict[str, tuple[bool, str]]:
    """Name → (critical, value), in the certificate's order."""
    block = text.split("X509v3 extensions:\n")[1].split("    Signature Algorithm", maxsplit=1)[0]
    parts = re.split(r"^ {12}(\S.*?): (critical)?\n", block, flags=re.MULTILINE)[1:]
    rows = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return {name: (critical == "critical", " ".join(value.split())) for name, critical, value in rows}


def key_id(text: str) -> str:
    return extensions(text)[SKI][1]


@pytest.mark.parametrize("level", LEVELS)
def test_names_and_serial_numbers_are_the_tables(printed: dict[str, str], level: str) -> None:
    """Subject with its attributes in order, issuer as the parent's subject, version 3, the serial number's length."""
    text, row = printed[level], TABLE[level]
    assert re.fullmatch(row.subject, field(text, "Subject:"))
    parent = printed[LEVELS[max(LEVELS.index(level) - 1, 0)]]
    assert field(text, "Issuer:") == field(parent, "Subject:")
    assert field(text, "Version:") == "3 (0x2)"
    serial = bytes.fromhex(field(text, "Serial Number:").replace(":", ""))
    assert len(serial.lstrip(b"\0")) == row.serial_bytes
    if level == "leaf":
        assert serial.hex() == f"018e7aa61e2040ff00000000{int(NOW.timestamp()):08x}"


@pytest.mark.parametrize("level", LEVELS)
def test_lives_and_backdating_are_the_tables(printed: dict[str, str], level: str) -> None:
    """How long before the issue it begins, and how long it lives, to the second."""
    form = "%b %d %H:%M:%S %Y GMT"
    start, end = (
        datetime.strptime(field(printed[level], name), form).replace(tzinfo=UTC)
        for name in ("Not Before", "Not After ")
    )
    row = TABLE[level]
    assert start == NOW.replace(microsecond=0) - row.backdate
    if level == "root":  # thirty years to the day
        assert end == NOW.replace(year=NOW.year + 30, microsecond=0)
    else:
        assert end - start == row.life


@pytest.mark.parametrize("level", LEVELS)
def test_keys_and_signatures_are_the_tables(printed: dict[str, str], level: str) -> None:
    """P-384, uncompressed, and ecdsa-with-SHA384 inside and outside."""
    text = printed[level]
    assert re.findall(r"Signature Algorithm: (\S+)", text) == ["ecdsa-with-SHA384"] * 2
    assert field(text, "Public Key Algorithm:") == "id-ecPublicKey"
    assert "ASN1 OID: secp384r1" in text
    assert re.search(r"pub:\s+04:", text)


@pytest.mark.parametrize("level", LEVELS)
def test_extensions_are_the_tables(printed: dict[str, str], level: str) -> None:
    """Which, in which order, critical or not, with which value; the parent's key identifier is the parent's."""
    found, row = extensions(printed[level]), TABLE[level]
    assert list(found) == list(row.extensions)
    for name, (critical, value) in row.extensions.items():
        assert found[name][0] is critical, name
        if value == "SKI":
            assert re.fullmatch("([0-9A-F]{2}:){19}[0-9A-F]{2}", found[name][1])
        elif value == "AKI":
            assert found[name][1] == key_id(printed[LEVELS[LEVELS.index(level) - 1]])
        else:
            assert re.fullmatch(value, found[name][1]), name


def test_openssl_verifies_the_whole_chain(tmp_path: Path) -> None:
    """From the root alone, at the time of issue; not below another root, not a day later."""
    write_chain(tmp_path)
    (tmp_path / "other").mkdir()
    write_chain(tmp_path / "other")

    def status(root: str, at: datetime, *more: str, what: str = "leaf") -> int:
        options = ("-attime", str(int(at.timestamp())), "-CAfile", root, "-untrusted", "between.pem", *more)
        return openssl("verify", *options, f"{what}.pem", cwd=tmp_path).returncode

    assert status("root.pem", NOW) == 0
    # strictness asks for key identifiers, which AWS's leaves lack as ours do
    assert status("root.pem", NOW, "-x509_strict", what="instance") == 0
    assert status("other/root.pem", NOW) == 2
    assert status("root.pem", NOW + timedelta(days=1)) == 2


def test_openssl_goes_by_our_revocation_lists(tmp_path: Path) -> None:
    """With every list it finds the instance good, and after a revocation revoked."""
    authority = write_chain(tmp_path)
    assert revocation.refresh(authority, NOW) is None

    def verify() -> subprocess.CompletedProcess[str]:
        lists = b"".join(path.read_bytes() for path in authority.store.crl_paths())
        (tmp_path / "lists.pem").write_bytes(lists)
        return openssl(
            "verify", "-crl_check_all", "-CRLfile", "lists.pem", "-attime", str(int(NOW.timestamp()) + 60),
            "-CAfile", "root.pem", "-untrusted", "between.pem", "instance.pem", cwd=tmp_path,
        )  # fmt: skip

    assert verify().returncode == 0, verify().stderr
    certificate = x509.load_pem_x509_certificate((tmp_path / "zonal.pem").read_bytes())
    revocation.revoke(authority, certificate, NOW)
    done = verify()
    assert done.returncode == 2
    assert "certificate revoked" in done.stderr


def test_an_organization_of_ones_own_goes_down_the_chain(tmp_path: Path) -> None:
    """Every name repeats it, every certificate stays below 1024 bytes, and OpenSSL still agrees."""
    write_chain(tmp_path, Organization("DE", "Ö" * 32, "U" * 64))
    for level in LEVELS:
        certificate = x509.load_pem_x509_certificate((tmp_path / f"{level}.pem").read_bytes())
        assert Organization.of(certificate) == Organization("DE", "Ö" * 32, "U" * 64)
        assert len(certificate.public_bytes(Encoding.DER)) <= 1024
    done = openssl(
        "verify", "-attime", str(int(NOW.timestamp())), "-CAfile", "root.pem",
        "-untrusted", "between.pem", "leaf.pem", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
