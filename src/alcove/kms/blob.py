"""Ciphertext blobs: what Encrypt gives and Decrypt takes (kms.md §13).

Core: key material, a nonce, plaintext and context in; bytes out, and back.

Layout, version 1; everything before the ciphertext is the header, and all of it is authenticated::

    u8 version = 1 | u8 algorithm = 1 | u8 n | n bytes key id (ASCII) | 32 bytes key material id | 32 bytes nonce
    ciphertext | 16 bytes GCM tag

Each message has its own AES-256-GCM key and IV: HKDF-SHA-256 over the material, with the nonce as salt and label,
version, key id and material id as info. The header and the canonical encryption context are the associated data.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION: Final = 1
ALGORITHM: Final = 1  # HKDF-SHA-256 and AES-256-GCM
NONCE_BYTES: Final = 32
MATERIAL_BYTES: Final = 32
TAG_BYTES: Final = 16
MAX_BLOB_BYTES: Final = 6144  # §9
_KEY_ID_MAX: Final = 64
_ID_BYTES: Final = 32
_LABEL = b"alcove kms ciphertext"
_CONTEXT_LABEL = b"alcove kms encryption context\x01"
_MATERIAL_ID_LABEL = b"alcove kms material id\x01"
_FIXED = struct.Struct(">BBB")  # version algorithm key-id-length
_LENGTH = struct.Struct(">I")
_NO_CONTEXT = _CONTEXT_LABEL + _LENGTH.pack(0)
_SHA256 = hashes.SHA256()


@dataclass(frozen=True, slots=True)
class Header:
    """Which key, which material and which nonce made a blob."""

    key_id: str
    material_id: str
    nonce: bytes

    def __post_init__(self) -> None:
        well = self.key_id.isascii() and 0 < len(self.key_id) <= _KEY_ID_MAX and len(self.nonce) == NONCE_BYTES
        if not well or len(bytes.fromhex(self.material_id)) != _ID_BYTES:
            raise ValueError("a blob header holds an ASCII key id, a 32-byte material id and a 32-byte nonce")

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return _FIXED.size + len(self.key_id) + _ID_BYTES + NONCE_BYTES

    def pack(self) -> bytes:
        """The header's bytes."""
        key_id = self.key_id.encode("ascii")
        return _FIXED.pack(VERSION, ALGORITHM, len(key_id)) + key_id + bytes.fromhex(self.material_id) + self.nonce

    @classmethod
    def parse(cls, blob: bytes) -> Header:
        """The header of a blob; nothing in it is authenticated yet.

        Raises:
            ValueError: The bytes are no blob of this service.
        """
        return _header(blob)


@functools.lru_cache(maxsize=16)  # one Decrypt asks four times: for the key, its checks, the material, and to open
def _header(blob: bytes) -> Header:
    if not _FIXED.size < len(blob) <= MAX_BLOB_BYTES:
        raise ValueError("wrong size")
    version, algorithm, length = _FIXED.unpack_from(blob)
    end = _FIXED.size + length
    if (version, algorithm) != (VERSION, ALGORITHM) or len(blob) < end + _ID_BYTES + NONCE_BYTES + TAG_BYTES:
        raise ValueError("not a blob of this service")
    key_id = blob[_FIXED.size : end].decode("ascii")
    material_id, nonce = blob[end : end + _ID_BYTES], blob[end + _ID_BYTES : end + _ID_BYTES + NONCE_BYTES]
    return Header(key_id, material_id.hex(), nonce)


def seal(plaintext: bytes, material: bytes, header: Header, context: Mapping[str, str]) -> bytes:
    """The blob of a plaintext; the header's nonce must be fresh random bytes."""
    packed = header.pack()
    cipher, iv = _message_cipher(material, packed)
    return packed + cipher.encrypt(iv, plaintext, packed + canonical_context(context))


def unseal(blob: bytes, material: bytes, context: Mapping[str, str]) -> bytes:
    """The plaintext of a blob.

    Raises:
        ValueError: Any bit of blob, material or context is not what it was.
    """
    packed = blob[: Header.parse(blob).size]
    cipher, iv = _message_cipher(material, packed)
    try:
        return cipher.decrypt(iv, blob[len(packed) :], packed + canonical_context(context))
    except InvalidTag:
        raise ValueError("the blob is not authentic") from None


def canonical_context(context: Mapping[str, str]) -> bytes:
    """The encryption context as associated data (§13.1): order-free and free of collisions.

    Raises:
        UnicodeEncodeError: A lone surrogate (a ValueError).
    """
    if not context:
        return _NO_CONTEXT
    pairs = sorted((key.encode(), value.encode()) for key, value in context.items())
    fields = (field for pair in pairs for field in pair)
    return _CONTEXT_LABEL + _LENGTH.pack(len(pairs)) + b"".join(_LENGTH.pack(len(f)) + f for f in fields)


def material_id(material: bytes, key_id: str, secret: bytes = b"") -> str:
    """The KeyMaterialId: 64 hex digits that name the material.

    Args:
        material: The material.
        key_id: Of its key.
        secret: Without it nobody can try out guesses at imported material that is weak.
    """
    info = _MATERIAL_ID_LABEL + key_id.encode("ascii")
    return HKDF(algorithm=_SHA256, length=_ID_BYTES, salt=secret or None, info=info).derive(material).hex()


def _message_cipher(material: bytes, packed: bytes) -> tuple[AESGCM, bytes]:
    """The cipher and the IV of the message whose header this is."""
    info = _LABEL + packed[:1] + packed[2:-NONCE_BYTES]  # version, and from the key id's length to the material id
    derived = HKDF(_SHA256, 32 + 12, packed[-NONCE_BYTES:], info).derive(material)
    return AESGCM(derived[:32]), derived[32:]
