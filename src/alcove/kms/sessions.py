"""Temporary credentials: what AssumeRole gives out, and how they are known again (kms.md §22.2, §23).

Core: a secret, random bytes and values in; credentials out, and back.

Nothing is stored. The session token is the session itself, sealed under a secret of the store, and bound to its access
key id; the secret access key is derived from the token. So every server of a store knows every session at once, and a
session ends with its time, or when its role is removed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PREFIX: Final = "ASIA"
NONCE_BYTES: Final = 12
MAX_TOKEN: Final = 2048  # characters
LABEL: Final = "sts sessions"


@dataclass(frozen=True, slots=True)
class Session:
    """One session of a role; times are whole seconds since the epoch."""

    role_id: str
    name: str
    issued: int
    expires: int


@dataclass(frozen=True, slots=True)
class Temporary:
    """Credentials of a session."""

    access_key_id: str
    secret: str
    token: str


class Sealer:
    """Makes credentials and opens their tokens.

    Args:
        secret: 32 bytes that all servers of the store share.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._cipher = AESGCM(hmac.digest(secret, b"seal", "sha256"))

    def seal(self, session: Session, random: bytes) -> Temporary:
        """Credentials for a session, from 22 fresh random bytes."""
        access_key_id = PREFIX + base64.b32encode(random[NONCE_BYTES:22]).decode()
        text = json.dumps([session.role_id, session.name, session.issued, session.expires]).encode()
        nonce = random[:NONCE_BYTES]
        token = base64.b64encode(nonce + self._cipher.encrypt(nonce, text, access_key_id.encode())).decode()
        return Temporary(access_key_id, self._secret_of(token), token)

    def open(self, access_key_id: str, token: str) -> tuple[Session, Temporary] | None:
        """The session of a token with its credentials; None when it was not made here for this access key id."""
        if len(token) > MAX_TOKEN:
            return None
        try:
            raw = base64.b64decode(token, validate=True)
            text = self._cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], access_key_id.encode())
        except (InvalidTag, ValueError, binascii.Error):
            return None
        return Session(*json.loads(text)), Temporary(access_key_id, self._secret_of(token), token)

    def _secret_of(self, token: str) -> str:
        return base64.b64encode(hmac.digest(self._secret, b"key" + token.encode(), hashlib.sha256)[:30]).decode()
