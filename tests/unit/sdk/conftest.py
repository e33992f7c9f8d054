"""An envelope maker that shares no code with the reader, and keys."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SHA256 = bytes.fromhex("300d06096086480165030402010500")
OAEP = "303c06092a864886f70d010107302fa00f" + SHA256.hex() + "a11c301a06092a864886f70d010108" + SHA256.hex()


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    return bytes((tag, 0x82)) + len(content).to_bytes(2) + content


def ber(tag: int, *parts: bytes) -> bytes:
    return bytes((tag, 0x80)) + b"".join(parts) + b"\x00\x00"


Wrap = Callable[..., bytes]


def make_envelope(
    public: rsa.RSAPublicKey,
    plaintext: bytes,
    *,
    outer: Wrap = ber,
    chunk: int | None = None,
    version: int = 2,
    oaep_hash: hashes.HashAlgorithm | None = None,
    oaep: bytes = bytes.fromhex(OAEP),
    key_size: int = 32,
    iv_size: int = 16,
    recipients: int = 1,
    cipher: str = "60864801650304012a",
) -> bytes:
    """The layout of sdk.md §4.1; `chunk` makes form A with pieces of that size; the rest is for faults."""
    key, iv = os.urandom(32), os.urandom(16)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    encrypted = encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()
    used = oaep_hash or hashes.SHA256()
    wrapped = public.encrypt(key[:key_size], rsa_padding.OAEP(rsa_padding.MGF1(used), used, None))
    recipient = der(0x30, der(2, bytes((version,))), der(0x80, bytes(32)), oaep, der(4, wrapped))
    content = der(0x80, encrypted)
    if chunk:
        content = outer(0xA0, *(der(4, encrypted[at : at + chunk]) for at in range(0, len(encrypted), chunk)))
    inner = outer(
        0x30,
        bytes.fromhex("06092a864886f70d010701"),
        der(0x30, der(6, bytes.fromhex(cipher)), der(4, iv[:iv_size])),
        content,
    )
    enveloped = outer(0x30, der(2, bytes((version,))), der(0x31, *[recipient] * recipients), inner)
    return outer(0x30, bytes.fromhex("06092a864886f70d010703"), outer(0xA0, enveloped))


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def seal() -> Callable[..., bytes]:
    return make_envelope


@pytest.fixture(scope="session")
def definite() -> Wrap:
    return der
