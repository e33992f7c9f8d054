"""The key that signs an image: in a PEM file, on a PKCS#11 token, or in a KMS (eif.md §3.1).

Whatever keeps the key, it is looked at before anything is built or written, and it must be the certificate's. Nothing
here falls back to an unsigned image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from cryptography.hazmat.primitives import hashes

from alcove.errors import AlcoveError, InputError, MachineError
from alcove.image.signing import Signer
from alcove.image.signing_kms import KmsKey, is_key_arn

MAX_FILE: Final = 1 << 20  # bytes; a signature section holds 32768 (eif.md §1.2)
T = TypeVar("T")
PKCS11_SCHEME: Final = "pkcs11:"


def load_signer(certificate: Path, private_key: str, *, environment: Mapping[str, str] = os.environ) -> Signer:
    """The signer of a certificate and its private key.

    Args:
        certificate: PEM file.
        private_key: Path of a PEM file, a `pkcs11:` URI, or the ARN of a KMS key.
        environment: Where the token's module and PIN are; KMS clients read the process's own.

    Raises:
        InputError: E19 when a file cannot be read.
        UsageError: E60 when certificate or key will not do, or do not go together.
        MachineError: E60 when the token or the KMS does not answer.
    """
    pem = _read(certificate)
    if private_key.startswith(PKCS11_SCHEME):
        return _guarded(lambda: _on_token(pem, private_key, environment))
    if is_key_arn(private_key):
        return _guarded(lambda: _in_kms(pem, KmsKey(private_key)))
    hint = "a KMS key is named by its ARN, not by an alias's" if private_key.startswith("arn:") else None
    return Signer.from_pem(pem, _read(Path(private_key), hint))


def _on_token(pem: bytes, uri: str, environment: Mapping[str, str]) -> Signer:
    """The session ends before a long build and begins again for the signature: tokens drop idle ones."""
    try:
        from alcove.pkcs11 import open_key  # noqa: PLC0415 - a package that only these signers need
    except ImportError as error:
        raise MachineError("keys on tokens need the package python-pkcs11", hint="pip install python-pkcs11") from error

    def sign(data: bytes, digest: hashes.HashAlgorithm) -> bytes:
        def work() -> bytes:
            with open_key(uri, environment=environment) as key:
                return key.sign(data, digest)

        return _guarded(work)

    with open_key(uri, environment=environment) as key:
        public_key = key.public_key
    return Signer(pem, public_key, sign)


def _in_kms(pem: bytes, key: KmsKey) -> Signer:
    return Signer(pem, key.public_key(), lambda data, digest: _guarded(lambda: key.sign(data, digest)))


def _guarded(work: Callable[[], T]) -> T:
    """What `work` gives; its errors say what did not happen, and have AWS's code for it."""
    try:
        return work()
    except AlcoveError as error:
        if error.code:
            raise
        raise type(error)(f"the image could not be signed: {error.message}", hint=error.hint, code="E60") from error


def _read(path: Path, hint: str | None = None) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror}", hint=hint, code="E19") from error
    if len(content) > MAX_FILE:
        raise InputError(f"cannot read `{path}`: it is longer than {MAX_FILE} bytes", hint=hint, code="E19")
    return content
