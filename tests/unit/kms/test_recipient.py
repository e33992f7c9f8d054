"""The envelope: AWS's bytes, golden sizes, and a foreign reader."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from alcove.kms.recipient import load_recipient_key, seal

KEY, IV = bytes(range(32)), bytes(range(16))


@pytest.fixture(scope="module")
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)


@pytest.mark.parametrize(
    ("size", "total"), [(0, 457), (1, 457), (15, 457), (16, 473), (31, 473), (32, 489), (1024, 1483), (4096, 4555)]
)
def test_the_envelope_has_the_size_of_awss(private_key: rsa.RSAPrivateKey, size: int, total: int) -> None:
    """Sizes with RSA-2048, measured on genuine answers (kms.md §4)."""
    assert len(seal(bytes(size), spki(private_key), content_key=KEY, iv=IV)) == total


def test_a_larger_key_adds_its_bytes() -> None:
    """RSA-3072 adds 128 bytes (kms.md §4)."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    assert len(seal(b"x", spki(key), content_key=KEY, iv=IV)) == 457 + 128


def test_the_fixed_bytes_are_awss(private_key: rsa.RSAPrivateKey) -> None:
    """Header, OAEP parameters and ends stand where AWS's parser looks for them (sdk.md §4.1)."""
    sealed = seal(b"hello", spki(private_key), content_key=KEY, iv=IV)
    assert sealed[:30].hex() == "308006092a864886f70d010703a0803080020102" + "3182016b" + "30820167" + "0201"
    assert sealed[31:33].hex() == "8020"
    assert sealed[65:127].hex() == (
        "303c06092a864886f70d010107302fa00f300d06096086480165030402010500"
        "a11c301a06092a864886f70d010108300d06096086480165030402010500"
    )
    assert sealed[127:131].hex() == "04820100"
    assert sealed[387:431].hex() == "308006092a864886f70d010701" + "301d060960864801650304012a0410" + IV.hex()
    assert sealed[431:433].hex() == "8010"
    assert sealed[-8:] == bytes(8)


@pytest.mark.parametrize("plaintext", [b"", b"secret of the enclave", bytes(4096)])
def test_openssl_opens_it(private_key: rsa.RSAPrivateKey, plaintext: bytes, tmp_path: Path) -> None:
    """A reader that shares no code with us gets the plaintext."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on this machine")
    pem = private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(pem)
    (tmp_path / "cms.der").write_bytes(seal(plaintext, spki(private_key), content_key=KEY, iv=IV))
    arguments = [openssl, "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "cms.der", "-inkey", "key.pem"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == plaintext


def test_a_key_that_is_not_rsa_of_the_right_size_is_refused() -> None:
    """Elliptic, short and garbled keys cannot be recipients (kms.md §5.3)."""
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - it is to be refused
    for bad in (spki(short), spki(ec.generate_private_key(ec.SECP256R1())), b"garbage", b"", bytes(1025)):
        with pytest.raises(ValueError, match="public_key"):
            load_recipient_key(bad)
