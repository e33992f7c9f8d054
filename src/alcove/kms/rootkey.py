"""The root key: under it every secret of the store is wrapped (kms.md §25).

It lives in a file of its own, mode 0600, outside the database. It is made once, when there is no data yet; a missing
or wrong root key beside existing data is never replaced.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from alcove.errors import MachineError, UsageError

ROOT_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_LABEL = b"alcove kms wrapped\x01"


class RootKey:
    """Wraps and unwraps small secrets with AES-256-GCM; the name of a secret is authenticated with it."""

    def __init__(self, key: bytes) -> None:
        if len(key) != ROOT_KEY_BYTES:
            raise ValueError("a root key has 32 bytes")
        self._key = key
        self._cipher = AESGCM(self.derive("wrap"))

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


def load_root_key(path: Path) -> RootKey:
    """The root key of a file with 64 hexadecimal digits.

    Raises:
        UsageError: Missing, readable by others, or not a root key.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise UsageError(
            f"the root key {path} is missing", hint="restore it: without it, nothing in the store can be opened"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read the root key {path}: {error.strerror}") from error
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise UsageError(f"the root key {path} can be read by others", hint=f"chmod 600 {path}")
        text = file.read(ROOT_KEY_BYTES * 2 + 2).strip()
    try:
        return RootKey(bytes.fromhex(text))
    except ValueError:
        raise UsageError(f"{path} is not a root key", hint="it must hold 64 hexadecimal digits") from None


def create_root_key(path: Path) -> RootKey:
    """A new root key in a new file that is complete on disk when this returns.

    Raises:
        MachineError: The file cannot be made, or exists.
    """
    key = secrets.token_bytes(ROOT_KEY_BYTES)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise MachineError(f"cannot write the root key {path}: {error.strerror}") from error
    return RootKey(key)
