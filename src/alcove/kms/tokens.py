"""Grant tokens: opaque, new each time, and recognised without being kept (kms.md §17).

Core: a grant's id, a secret and random bytes in; a token out, and back. Tokens are not secret: they say which grant is
meant, and who may use that is decided by the grant.

Layout, in base64: u8 version = 1 | 32 bytes grant id | 16 random bytes | 16 bytes HMAC-SHA-256, cut short.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Final

from alcove.kms.errors import KmsError

NONCE_BYTES: Final = 16
_ID_BYTES: Final = 32
_MAC_BYTES: Final = 16
_VERSION: Final = b"\x01"


def new_token(grant_id: str, secret: bytes, nonce: bytes) -> str:
    """A token of a grant."""
    body = _VERSION + bytes.fromhex(grant_id) + nonce
    return base64.b64encode(body + _mac(body, secret)).decode("ascii")


def open_token(token: str, secret: bytes) -> str:
    """The id of the grant that a token is of.

    Raises:
        KmsError: InvalidGrantTokenException.
    """
    try:
        raw = base64.b64decode(token, validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(body, secret)) or len(body) != 1 + _ID_BYTES + NONCE_BYTES:
        raise KmsError("InvalidGrantTokenException", "The grant token is not valid.")
    return body[1 : 1 + _ID_BYTES].hex()


def _mac(body: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, body, "sha256")[:_MAC_BYTES]
