"""Where a root's private key lives, and how it is used from there.

``root-key.pem`` in the authority's directory (0600) holds one of these:

    -----BEGIN PRIVATE KEY-----            the key itself: what a machine makes for itself at first use
    -----BEGIN ENCRYPTED PRIVATE KEY-----  the key, protected by a passphrase
    file:/media/stick/root-key.pem         where the protected key is
    pkcs11:token=ca;object=root            the token where the key is; a PIN is never written down here

and when there is no such file, the key is on another machine. A passphrase comes from a prompt, a file or the
environment, and never from an argument list, which every process can read.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from alcove.attestation.files import read_file
from alcove.attestation.pki import RemoteKey, SigningKey
from alcove.codec import der
from alcove.codec.der_writer import encode
from alcove.errors import MachineError, UsageError

PASSPHRASE: Final = "ALCOVE_CA_PASSPHRASE"  # noqa: S105 - a variable's name
PASSPHRASE_FILE: Final = "ALCOVE_CA_PASSPHRASE_FILE"  # noqa: S105 - a variable's name
MIN_PASSPHRASE: Final = 12  # bytes
MAX_PASSPHRASE: Final = 1023  # bytes; OpenSSL's limit
ITERATIONS: Final = 600_000  # of PBKDF2 with SHA-256, by OWASP's advice; OpenSSL's own default for PKCS#8 is 2048

_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")  # RFC 8018 appendix A
_PBKDF2: Final = bytes.fromhex("06092a864886f70d01050c")
_HMAC_SHA256: Final = bytes.fromhex("300c06082a864886f70d02090500")
_AES_256_CBC: Final = bytes.fromhex("060960864801650304012a")
_BLOCK: Final = 128  # bits


class Kind(StrEnum):
    """What sort of place holds a root's key."""

    PLAIN = "file"
    PROTECTED = "passphrase-protected file"
    TOKEN = "PKCS#11 token"  # noqa: S105 - a sort of device
    ELSEWHERE = "another machine"


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where a root's key is: a path, a PKCS#11 URI, or nothing for another machine."""

    kind: Kind
    where: str = ""

    @classmethod
    def of(cls, path: Path) -> KeyPlace:
        """What `path`, a ``root-key.pem``, says; MachineError when it cannot be read or says nothing."""
        if not path.exists():
            return cls(Kind.ELSEWHERE)
        text = read_file(path).decode(errors="replace").strip()
        if text.startswith("pkcs11:"):
            return cls(Kind.TOKEN, text)
        if text.startswith("file:"):
            return cls(Kind.PROTECTED, text.removeprefix("file:"))
        if "-----BEGIN ENCRYPTED PRIVATE KEY-----" in text:
            return cls(Kind.PROTECTED, str(path))
        if "-----BEGIN PRIVATE KEY-----" in text:
            return cls(Kind.PLAIN, str(path))
        raise MachineError(f"`{path}` holds neither a key nor the place of one")

    @contextlib.contextmanager
    def open(self, passphrase: bytes | None = None) -> Iterator[SigningKey]:
        """The key, for as long as the context lasts.

        Args:
            passphrase: What opens a protected file; the environment's when None.

        Raises:
            MachineError: The key is not here, or not to be used.
        """
        match self.kind:
            case Kind.TOKEN:
                with _token_key(self.where) as key:
                    yield key
            case Kind.ELSEWHERE:
                raise MachineError(
                    "the root's key is not on this machine",
                    hint="`alcove ca request` here, `alcove ca issue-parent` where it is, `alcove ca install` here",
                )
            case _:
                yield _file_key(Path(self.where), passphrase, protected=self.kind is Kind.PROTECTED)


@dataclass(frozen=True, slots=True)
class NewKey:
    """Where a new root's key shall live: in the authority's directory, unless `file` or `uri` says otherwise.

    With `passphrase` it is protected; with `uri` it is on a token already.
    """

    file: Path | None = None
    uri: str | None = None
    passphrase: bytes | None = field(default=None, repr=False)

    @contextlib.contextmanager
    def make(self, path: Path) -> Iterator[tuple[SigningKey, dict[Path, bytes]]]:
        """The key, and the contents of the files that keep it, `path` among them.

        Raises:
            UsageError: `file` exists, or the passphrase or the URI, such as one with a PIN, will not do.
            MachineError: The token cannot be used.
        """
        if self.uri is not None:
            with _token_key(self.uri) as token:
                yield token, {path: f"{self.uri}\n".encode()}
            return
        key = ec.generate_private_key(ec.SECP384R1())
        pem = plain_pem(key) if self.passphrase is None else protected_pem(key, self.passphrase)
        if self.file is None or self.file.absolute() == path.absolute():
            yield key, {path: pem}
            return
        if self.passphrase is None:
            raise UsageError("a key outside of the authority's directory needs a passphrase")
        if self.file.exists():
            raise UsageError(f"`{self.file}` exists already", hint="a key is never overwritten")
        yield key, {self.file: pem, path: f"file:{self.file.absolute()}\n".encode()}


def check_passphrase(passphrase: bytes) -> bytes:
    """`passphrase`, which is neither too short nor too long for a root's key; UsageError otherwise."""
    if not MIN_PASSPHRASE <= len(passphrase) <= MAX_PASSPHRASE:
        raise UsageError(f"a passphrase has {MIN_PASSPHRASE} to {MAX_PASSPHRASE} bytes")
    return passphrase


def environment_passphrase(environment: Mapping[str, str] | None = None) -> bytes | None:
    """The passphrase that the environment holds or names the file of; None when it does neither."""
    variables = os.environ if environment is None else environment
    if path := variables.get(PASSPHRASE_FILE):
        return read_passphrase(Path(path))
    text = variables.get(PASSPHRASE)
    return text.encode() if text else None


def read_passphrase(path: Path) -> bytes:
    """A file's first line; MachineError when it cannot be read."""
    return read_file(path).split(b"\n", 1)[0].rstrip(b"\r")


def plain_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8 without protection but the file's mode."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def protected_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> bytes:
    """PKCS#8 under PBES2: PBKDF2 with HMAC-SHA-256, then AES-256-CBC (RFC 8018 §6.2), which OpenSSL reads."""
    check_passphrase(passphrase)
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(16)
    derived = PBKDF2HMAC(SHA256(), length=32, salt=salt, iterations=ITERATIONS).derive(passphrase)
    padder = padding.PKCS7(_BLOCK).padder()
    clear = padder.update(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())) + padder.finalize()
    encryptor = Cipher(algorithms.AES(derived), modes.CBC(iv)).encryptor()
    hidden = encryptor.update(clear) + encryptor.finalize()
    count = encode(der.INTEGER, ITERATIONS.to_bytes(3))
    derivation = encode(der.SEQUENCE, encode(der.OCTET_STRING, salt), count, _HMAC_SHA256)
    scheme = encode(
        der.SEQUENCE,
        encode(der.SEQUENCE, _PBKDF2, derivation),
        encode(der.SEQUENCE, _AES_256_CBC, encode(der.OCTET_STRING, iv)),
    )
    whole = encode(der.SEQUENCE, encode(der.SEQUENCE, _PBES2, scheme), encode(der.OCTET_STRING, hidden))
    lines = textwrap.wrap(base64.b64encode(whole).decode(), 64)  # RFC 7468
    label = "ENCRYPTED PRIVATE KEY"
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _file_key(path: Path, passphrase: bytes | None, *, protected: bool) -> ec.EllipticCurvePrivateKey:
    pem = read_file(path)
    if protected:
        passphrase = environment_passphrase() if passphrase is None else passphrase
        if passphrase is None:
            raise MachineError(
                f"the root's key in `{path}` is protected by a passphrase",
                hint=f"run `alcove ca rotate` and type it, or set {PASSPHRASE_FILE}",
            )
    try:
        key = load_pem_private_key(pem, password=passphrase if protected else None)
    except (ValueError, TypeError):
        why = "the passphrase is wrong, or the file damaged" if protected else "the file is damaged"
        raise MachineError(f"the root's key in `{path}` cannot be opened: {why}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise MachineError(f"the key in `{path}` is not of P-384")
    return key


@contextlib.contextmanager
def _token_key(uri: str) -> Iterator[RemoteKey]:
    try:
        from alcove.pkcs11 import open_key  # noqa: PLC0415 - python-pkcs11 is needed only where a token is
    except ImportError as error:
        raise MachineError(f"PKCS#11 cannot be used: {error}", hint="pip install python-pkcs11") from None
    with open_key(uri, environment=os.environ) as token:
        public = token.public_key
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP384R1):
            raise MachineError(f"the key at `{uri}` is not of P-384")
        yield RemoteKey(public, lambda data: token.sign(data, SHA384()))
