"""The root key: under it every secret of the store is wrapped (kms.md §25).

Where it is kept is not this module's affair: see `rootfile` and `rootplace`.
"""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

ROOT_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
FINGERPRINT_BYTES: Final = 8
_LABEL = b"alcove kms wrapped\x01"


class RootKey:
    """Wraps and unwraps small secrets with AES-256-GCM; the name of a secret is authenticated with it."""

    def __init__(self, key: bytes) -> None:
        if len(key) != ROOT_KEY_BYTES:
            raise ValueError("a root key has 32 bytes")
        self._key = key
        self._cipher = AESGCM(self.derive("wrap"))

    @classmethod
    def generate(cls) -> RootKey:
        """A fresh one."""
        return cls(secrets.token_bytes(ROOT_KEY_BYTES))

    @property
    def fingerprint(self) -> str:
        """What tells root keys apart and says nothing about them: 16 hexadecimal digits."""
        return self.derive("fingerprint")[:FINGERPRINT_BYTES].hex()

    def export(self) -> bytes:
        """The key itself, for whoever puts it away."""
        return self._key

    def wrap(self, secret: bytes, name: str) -> bytes:
        """The wrapped form: nonce, ciphertext and tag."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, _LABEL + name.encode())

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """The secret.

        Raises:
            ValueError: Another root key wrapped it, or it was stored under another name, or it was changed.
        """
        try:
            return self._cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], _LABEL + name.encode())
        except InvalidTag:
            raise ValueError(f"{name} was not wrapped under this root key") from None

    def derive(self, label: str) -> bytes:
        """A 32-byte key for another purpose."""
        info = b"alcove kms root key " + label.encode()
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(self._key)
