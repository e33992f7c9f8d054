"""Signing with keys in files and on tokens, and what goes wrong with them. Keys in a KMS: tests/unit/kms."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from tests.unit.pkcs11.softhsm import SoftHsm, make_softhsm

from alcove.errors import AlcoveError, InputError, MachineError, UsageError
from alcove.image.describe import describe_eif
from alcove.image.pcr import pcr_of_certificate
from alcove.image.sign import load_signer, sign_eif
from alcove.image.signing import Signer
from alcove.pkcs11 import TokenKey, open_key

MakePem = Callable[[ec.EllipticCurve], tuple[bytes, bytes]]
CURVES = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]
URI = "pkcs11:token=hsm;object=k"


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftHsm]:
    """A token; the programs find it by their environment."""
    token = make_softhsm(tmp_path / "softhsm", monkeypatch)
    for name, value in token.environment.items():
        monkeypatch.setenv(name, value)
    return token


def certify(key: TokenKey) -> bytes:
    """A certificate for a key on a token, PEM; a key in memory signs it, for nobody looks at that."""
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "token")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=9)).public_key(key.public_key)
    signed = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def token_certificate(hsm: SoftHsm, directory: Path) -> Path:
    """The file of a certificate for the token's key `k`."""
    with open_key(URI, environment=hsm.environment) as key:
        (directory / "token.pem").write_bytes(certify(key))
    return directory / "token.pem"


def run_sign_eif(eif: Path, certificate: Path, key: str) -> subprocess.CompletedProcess[str]:
    """The program itself."""
    flags = ["--eif-path", str(eif), "--signing-certificate", str(certificate), "--private-key", key]
    command = [str(Path(sys.executable).parent / "nitro-cli"), "sign-eif", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def refusal(certificate: Path, key: str) -> AlcoveError:
    """What load_signer says."""
    with pytest.raises(AlcoveError) as caught:
        load_signer(certificate, key)
    return caught.value


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_a_key_on_a_token_signs_an_image(hsm: SoftHsm, eif: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    """The image is signed, its signature checks, and PCR8 is what `pcr --signing-certificate` says."""
    hsm.generate(curve, "k")
    certificate = token_certificate(hsm, tmp_path)
    before = describe_eif(eif)["Measurements"]
    measured = sign_eif(eif, load_signer(certificate, URI))
    described = describe_eif(eif)
    assert (described["IsSigned"], described["SignatureCheck"], described["CheckCRC"]) == (True, True, True)
    assert described["Measurements"] == measured.to_json() == before | {"PCR8": pcr_of_certificate(certificate).hex()}


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_pcr8_is_that_of_the_certificate(eif: Path, tmp_path: Path, make_pem: MakePem, curve: ec.EllipticCurve) -> None:
    """For keys in files too."""
    for name, content in zip(("c.pem", "k.pem"), make_pem(curve), strict=True):
        (tmp_path / name).write_bytes(content)
    measured = sign_eif(eif, load_signer(tmp_path / "c.pem", str(tmp_path / "k.pem")))
    assert measured.pcr8 == pcr_of_certificate(tmp_path / "c.pem")
    assert describe_eif(eif)["SignatureCheck"] is True


def test_the_program_signs_with_a_token(hsm: SoftHsm, eif: Path, tmp_path: Path) -> None:
    """`sign-eif` with a URI; the PIN comes from the environment."""
    hsm.generate(ec.SECP384R1(), "k")
    certificate = token_certificate(hsm, tmp_path)
    done = run_sign_eif(eif, certificate, URI)
    assert (done.returncode, done.stderr) == (0, "Enclave Image successfully signed.\n")
    assert json.loads(done.stdout)["Measurements"]["PCR8"] == pcr_of_certificate(certificate).hex()


def test_the_same_key_file_gives_the_same_signature(pem: tuple[bytes, bytes]) -> None:
    """RFC 6979: a signed image is reproducible byte for byte."""
    signer = Signer.from_pem(*pem)
    assert signer.sign(bytes(48)) == signer.sign(bytes(48)) != signer.sign(bytes([1] * 48))


def test_a_tokens_key_must_be_the_certificates(
    hsm: SoftHsm, eif: Path, tmp_path: Path, pem: tuple[bytes, bytes]
) -> None:
    """Found before anything is written."""
    hsm.generate(ec.SECP384R1(), "k")
    (tmp_path / "c.pem").write_bytes(pem[0])
    problem = refusal(tmp_path / "c.pem", URI)
    assert problem.code == "E60"
    assert "not the signing certificate's" in problem.message


def test_a_token_that_is_gone_when_it_should_sign_leaves_the_image(hsm: SoftHsm, eif: Path, tmp_path: Path) -> None:
    """E60, and the image is the unsigned one that it was; nothing lies beside it."""
    hsm.generate(ec.SECP384R1(), "k")
    signer = load_signer(token_certificate(hsm, tmp_path), URI)
    hsm.remove(label="k")
    content, beside = eif.read_bytes(), sorted(tmp_path.iterdir())
    with pytest.raises(UsageError) as caught:
        sign_eif(eif, signer)
    assert caught.value.code == "E60"
    assert "could not be signed" in caught.value.message
    assert eif.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == beside


def test_a_signature_of_another_key_is_not_written(eif: Path, make_pem: MakePem) -> None:
    """A keeper that signs with another key than it showed, or with nonsense, gives an error and no image."""
    certificate, _ = make_pem(ec.SECP384R1())
    public = x509.load_pem_x509_certificate(certificate).public_key()
    other = ec.generate_private_key(ec.SECP384R1())
    before = eif.read_bytes()
    for answer in (
        lambda data, digest: other.sign(data, ec.ECDSA(digest)),
        lambda *_: b"",
        lambda *_: b"0\6\2\1\0\2\1\0",
    ):
        with pytest.raises(MachineError, match="does not verify") as caught:
            sign_eif(eif, Signer(certificate, public, answer))
        assert caught.value.code == "E60"
        assert eif.read_bytes() == before


def test_bad_keys_and_certificates_are_named(tmp_path: Path, make_pem: MakePem) -> None:
    """Each has AWS's code, a sentence and a hint."""
    certificate, key = (tmp_path / name for name in ("c.pem", "k.pem"))
    certificate.write_bytes(make_pem(ec.SECP384R1())[0])
    other_kinds = [ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)]
    other_kinds.append(ec.generate_private_key(ec.SECP256K1()))
    for kind in other_kinds:
        key.write_bytes(
            kind.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        assert "not on P-256" in refusal(certificate, str(key)).message
    for junk in (b"", b"junk", certificate.read_bytes()):
        key.write_bytes(junk)
        assert "not a key in PEM" in refusal(certificate, str(key)).message
    key.write_bytes(make_pem(ec.SECP384R1())[1])
    assert "not the signing certificate's" in refusal(certificate, str(key)).message
    certificate.write_bytes(b"junk")
    problem = refusal(certificate, str(key))
    assert (problem.code, "not a certificate" in problem.message, bool(problem.hint)) == ("E60", True, True)


def test_files_that_cannot_be_read_are_named(tmp_path: Path, pem: tuple[bytes, bytes]) -> None:
    """E19; what looks like the ARN of an alias gets a hint; and a device does not fill the memory."""
    (tmp_path / "c.pem").write_bytes(pem[0])
    missing = refusal(tmp_path / "none.pem", "k.pem")
    assert (type(missing), missing.code) == (InputError, "E19")
    alias = refusal(tmp_path / "c.pem", "arn:aws:kms:eu-central-1:111122223333:alias/signing")
    assert (alias.code, "alias" in str(alias.hint)) == ("E19", True)
    assert "longer than" in refusal(Path("/dev/zero"), "k.pem").message


def test_the_program_says_it_in_one_line(eif: Path, tmp_path: Path, pem: tuple[bytes, bytes]) -> None:
    """`[ E60 ]`, exit status 60, a hint, no traceback: for a token whose module is not there."""
    (tmp_path / "c.pem").write_bytes(pem[0])
    done = run_sign_eif(eif, tmp_path / "c.pem", f"{URI}?module-path=/none.so")
    assert (done.returncode, done.stdout) == (60, "")
    first, second = done.stderr.splitlines()
    assert first == "[ E60 ] the image could not be signed: the PKCS#11 module `/none.so` is missing"
    assert second.startswith("hint: ")
