"""What a root key's file holds (kms.md §25).

One of these, and nothing else:

    64 hexadecimal digits               the root key itself
    {"kind": "passphrase", …}           the root key, sealed under a passphrase (scrypt, then AES-256-GCM)
    {"kind": "pkcs11", "uri": …, …}     the root key, sealed under an AES key that stays on a token

A passphrase comes from a prompt, a file or the environment, never from an argument list. A token is asked once, when
the file is opened.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from alcove.errors import UsageError
from alcove.kms.rootkey import ROOT_KEY_BYTES, RootKey

FORMAT: Final = "alcove-kms-root-key-1"
SCRYPT: Final = {"n": 1 << 17, "r": 8, "p": 1}  # OWASP's advice; 128 MiB and about half a second
MAX_SCRYPT: Final = {"n": 1 << 20, "r": 16, "p": 4}  # what a file may ask of this process
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 12
MIN_PASSPHRASE: Final = 12  # bytes
MAX_PASSPHRASE: Final = 1024
MAX_FILE: Final = 16_384


@dataclass(frozen=True, slots=True)
class Openers:
    """What may be needed to open a root key's file.

    Attributes:
        passphrase: Gives the passphrase; asked only for a file that needs one.
        environment: Where a token's module and PIN are named.
    """

    passphrase: Callable[[], bytes]
    environment: Mapping[str, str]


def kind(text: str) -> str:
    """What sort of file this is: ``plain``, ``passphrase`` or ``pkcs11``; ValueError for none of them."""
    if not text.lstrip().startswith("{"):
        return "plain"
    found = _parse(text)["kind"]
    if found not in {"passphrase", "pkcs11"}:
        raise ValueError("its kind is not known")
    return str(found)


def token(text: str) -> str:
    """The URI of the token's key that opens this file; empty when none does."""
    return str(_parse(text)["uri"]) if kind(text) == "pkcs11" else ""


def open_root(text: str, openers: Openers) -> RootKey:
    """The root key of a file.

    Raises:
        ValueError: The file is not a root key's.
        UsageError: The passphrase is wrong, or the token holds another key.
        MachineError: The token cannot be used.
    """
    match kind(text):
        case "plain":
            return RootKey(bytes.fromhex(text.strip()))
        case "passphrase":
            return _open_passphrase(_parse(text), openers)
        case _:
            return _open_token(_parse(text), openers)


def plain(root: RootKey) -> str:
    """The file of an unprotected root key."""
    return root.export().hex() + "\n"


def under_passphrase(root: RootKey, passphrase: bytes) -> str:
    """The file of a root key under a passphrase.

    Raises:
        UsageError: The passphrase is too short or too long.
    """
    if not MIN_PASSPHRASE <= len(passphrase) <= MAX_PASSPHRASE:
        raise UsageError(f"a passphrase has {MIN_PASSPHRASE} to {MAX_PASSPHRASE} bytes")
    salt, nonce = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
    head: dict[str, Any] = {"format": FORMAT, "kind": "passphrase", "fingerprint": root.fingerprint}
    head |= {"scrypt": SCRYPT | {"salt": _b64(salt)}}
    cipher = AESGCM(_scrypt(passphrase, salt, SCRYPT))
    return _text(head, nonce + cipher.encrypt(nonce, root.export(), _bound(head)))


def under_token(root: RootKey, uri: str, environment: Mapping[str, str]) -> str:
    """The file of a root key under an AES key of a token.

    Raises:
        UsageError: The URI, the PIN or the key is not what it should be.
        MachineError: The token cannot be used.
    """
    from alcove.pkcs11.sealing import open_sealing_key  # noqa: PLC0415 - only those with a token need it

    head: dict[str, Any] = {"format": FORMAT, "kind": "pkcs11", "fingerprint": root.fingerprint, "uri": uri}
    with open_sealing_key(uri, environment=environment) as key:
        return _text(head, key.seal(root.export(), _bound(head)))


def _open_passphrase(file: dict[str, Any], openers: Openers) -> RootKey:
    cost = file["scrypt"]
    if not all(type(cost[name]) is int and 1 <= cost[name] <= limit for name, limit in MAX_SCRYPT.items()):
        raise ValueError("its cost is out of bounds")
    sealed = _unb64(file["sealed"])
    key = _scrypt(openers.passphrase(), _unb64(cost["salt"]), cost)
    try:
        return RootKey(AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound(file)))
    except InvalidTag:
        raise UsageError("the passphrase does not open the root key") from None


def _open_token(file: dict[str, Any], openers: Openers) -> RootKey:
    from alcove.pkcs11.sealing import open_sealing_key  # noqa: PLC0415 - only those with a token need it

    with open_sealing_key(file["uri"], environment=openers.environment) as key:
        opened = key.open(_unb64(file["sealed"]), _bound(file))
    if opened is None:
        raise UsageError("the key on the token does not open the root key", hint="was the token's key made anew?")
    return RootKey(opened)


def _parse(text: str) -> dict[str, Any]:
    file = json.loads(text)
    if not isinstance(file, dict) or file.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    try:
        expected: dict[str, type] = {"kind": str, "fingerprint": str, "sealed": str}
        expected |= {"uri": str} if file["kind"] == "pkcs11" else {"scrypt": dict}
        fits = all(isinstance(file[name], kind) for name, kind in expected.items())
        fits = fits and ("scrypt" not in expected or isinstance(file["scrypt"]["salt"], str))
        fits = fits and ("scrypt" not in expected or set(MAX_SCRYPT) <= set(file["scrypt"]))
    except KeyError as error:
        raise ValueError(f"it lacks {error}") from None
    if not fits:
        raise ValueError("a member is of the wrong kind")
    return file


def _bound(file: Mapping[str, Any]) -> bytes:
    """What is authenticated with the sealed key: everything else in the file."""
    head = {name: value for name, value in file.items() if name != "sealed"}
    return json.dumps(head, sort_keys=True, separators=(",", ":")).encode()


def _text(head: Mapping[str, Any], sealed: bytes) -> str:
    return json.dumps({**head, "sealed": _b64(sealed)}, indent=2) + "\n"


def _scrypt(passphrase: bytes, salt: bytes, cost: Mapping[str, Any]) -> bytes:
    return Scrypt(salt=salt, length=ROOT_KEY_BYTES, n=cost["n"], r=cost["r"], p=cost["p"]).derive(passphrase)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
