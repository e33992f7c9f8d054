"""A real attestation authority, as the tests use it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256

from alcove.attestation.attester import Attester
from alcove.attestation.authority import Authority

INSTANCE = "i-0123456789abcdef0"
REGION = "us-east-1"
GOOD = {index: bytes([0xA0 + index]) * 48 for index in range(5)}


def make_authority(directory: Path) -> Authority:
    """A root that is some minutes old, so that its documents can be old."""
    return Authority.create(directory, before())


def make_attester(authority: Authority) -> Attester:
    """What signs the documents of one enclave."""
    return Attester(authority.parent_identity(INSTANCE, REGION, before()), f"{INSTANCE}-enc0123456789abcdef")


def before() -> datetime:
    """Ten minutes ago."""
    return datetime.now(UTC) - timedelta(minutes=10)


class Enclave:
    """Keys and documents as code in an enclave has them."""

    def __init__(self, attester: Attester, pcrs: dict[int, bytes], *, age: float = 0) -> None:
        self._attester = attester
        self._pcrs = pcrs
        self._age = timedelta(seconds=age)
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def recipient(self, public_key: bytes | None = None) -> dict[str, Any]:
        """The Recipient parameter with a fresh document."""
        return {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": self.document(public_key)}

    def document(self, public_key: bytes | None = None) -> bytes:
        """A document that names the enclave's key, or another one."""
        now = datetime.now(UTC) - self._age
        own = spki(self.key) if public_key is None else public_key
        return self._attester.document(self._pcrs, user_data=None, nonce=None, public_key=own or None, now=now)

    def open(self, envelope: bytes) -> bytes:
        """What is in an envelope; the layout is the fixed one of kms.md §4 with RSA-2048."""
        wrapped, iv = envelope[131:387], envelope[415:431]
        oaep = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
        start = 433 if envelope[432] < 0x80 else 433 + (envelope[432] & 0x7F)
        decryptor = Cipher(algorithms.AES(self.key.decrypt(wrapped, oaep)), modes.CBC(iv)).decryptor()
        padded = decryptor.update(envelope[start:-8]) + decryptor.finalize()
        return padded[: -padded[-1]]


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """The public half, SubjectPublicKeyInfo in DER."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)
