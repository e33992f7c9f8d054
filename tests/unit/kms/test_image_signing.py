"""An image signed with a key of our KMS: two real processes, and loopback between them."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.image.conftest import sections

from alcove.image.builder import NewHeader, write_eif
from alcove.image.describe import describe_eif
from alcove.image.pcr import pcr_of_certificate

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A KMS in a process of its own; what a client needs to reach it, and nothing of this machine's own settings."""
    home = tmp_path_factory.mktemp("kms")
    settings = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    settings |= {"HOME": str(home), "ALCOVE_STATE": str(home / "state"), "ALCOVE_RUN": str(home / "run")}
    settings |= {"ALCOVE_CONFIG": str(home / "config")}
    added = subprocess.run(
        [BIN / "alcove", "kms", "user", "add", "builder", "--admin", "--json"],
        env=settings, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    user = json.loads(added.stdout)
    command = [BIN / "alcove", "kms", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield settings | {
                "AWS_ENDPOINT_URL_KMS": address(process),
                "AWS_ACCESS_KEY_ID": user["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": user["SecretAccessKey"],
                "AWS_MAX_ATTEMPTS": "1",
            }
        finally:
            process.terminate()
            process.wait(timeout=120)


def address(process: subprocess.Popen[str]) -> str:
    """The URL that the service says it listens on."""
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stderr:
        for word in line.split():
            if word.startswith("http://"):
                return word.rstrip(".,")
    raise AssertionError("the service said nothing")


@pytest.fixture
def kms(environment: dict[str, str]) -> Any:
    """boto3 for the builder."""
    return boto3.client(
        "kms",
        endpoint_url=environment["AWS_ENDPOINT_URL_KMS"],
        region_name="us-east-1",
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture
def eif(tmp_path: Path) -> Path:
    """A sound, unsigned image."""
    write_eif(tmp_path / "app.eif", NewHeader(0), sections())
    return tmp_path / "app.eif"


def make_key(kms: Any, spec: str, usage: str = "SIGN_VERIFY") -> str:
    return str(kms.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["Arn"])


def certify(kms: Any, arn: str, path: Path) -> Path:
    """A certificate for a key in the KMS."""
    public = serialization.load_der_public_key(kms.get_public_key(KeyId=arn)["PublicKey"])
    assert isinstance(public, ec.EllipticCurvePublicKey)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "kms")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, public, 1, now, now + dt.timedelta(days=9))
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def sign_eif(eif: Path, certificate: Path, key: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    flags = ["--eif-path", eif, "--signing-certificate", certificate, "--private-key", key]
    return subprocess.run(
        [BIN / "nitro-cli", "sign-eif", *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521"])
def test_an_image_signed_in_the_kms_verifies(
    kms: Any, eif: Path, tmp_path: Path, environment: dict[str, str], spec: str
) -> None:
    """sign-eif with the key's ARN; describe-eif accepts the signature; PCR8 is the certificate's."""
    arn = make_key(kms, spec)
    certificate = certify(kms, arn, tmp_path / "cert.pem")
    done = sign_eif(eif, certificate, arn, environment)
    assert (done.returncode, done.stderr) == (0, "Enclave Image successfully signed.\n")
    described = describe_eif(eif)
    assert (described["IsSigned"], described["SignatureCheck"], described["CheckCRC"]) == (True, True, True)
    assert described["Measurements"] == json.loads(done.stdout)["Measurements"]
    assert described["Measurements"]["PCR8"] == pcr_of_certificate(certificate).hex()


def test_nothing_is_signed_with_less(kms: Any, eif: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """Each fault: E60 in one line with a hint, status 60, and the image as it was (eif.md §8 trap 5)."""
    good, other = make_key(kms, "ECC_NIST_P384"), make_key(kms, "ECC_NIST_P384")
    certificate = certify(kms, good, tmp_path / "cert.pem")
    disabled, agreement = make_key(kms, "ECC_NIST_P384"), make_key(kms, "ECC_NIST_P384", "KEY_AGREEMENT")
    kms.disable_key(KeyId=disabled)
    without = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
    endpoint = {"AWS_ENDPOINT_URL_KMS": environment["AWS_ENDPOINT_URL_KMS"], "AWS_EC2_METADATA_DISABLED": "true"}
    cases = [
        (other, environment, "is not the signing certificate's"),
        (make_key(kms, "RSA_2048"), environment, "not on P-256"),
        (make_key(kms, "ECC_SECG_P256K1"), environment, "not on P-256"),
        (agreement, environment, "for KEY_AGREEMENT and not for signing"),
        (disabled, environment, "DisabledException"),
        (good[:-4] + "0000", environment, "NotFoundException"),
        (good, environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}, "InvalidSignatureException"),
        (good, environment | {"AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:1"}, "did not answer"),
        (good, environment | {"AWS_ENDPOINT_URL_KMS": "nonsense"}, "did not answer"),
        (good, without | endpoint, "no AWS credentials"),
    ]
    before = eif.read_bytes()
    for key, settings, words in cases:
        done = sign_eif(eif, certificate, key, settings)
        assert done.returncode == 60, done.stderr
        first, hint = done.stderr.splitlines()
        assert first.startswith("[ E60 ] the image could not be signed: ")
        assert words in first
        assert hint.startswith("hint: ")
        assert eif.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.eif", "cert.pem"]
