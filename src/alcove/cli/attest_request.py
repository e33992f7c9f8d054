"""``alcove attest request``: a document from the security module of the enclave that this runs in."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from alcove.attestation.document import MAX_FIELD
from alcove.cli import output
from alcove.cli.attest_inputs import parse_hex, read_bytes
from alcove.errors import UsageError


def request(arguments: argparse.Namespace) -> None:
    """Ask for a document, and write it whole or not at all."""
    nonce = _limited("--nonce", parse_hex("--nonce", arguments.nonce))
    user_data = None if arguments.user_data is None else _limited("--user-data", _user_data(arguments.user_data))
    public_key = None if arguments.public_key is None else _limited("--public-key", _public_key(arguments.public_key))
    if arguments.output is None and sys.stdout.isatty():
        raise UsageError("a document is no text for a terminal", hint="give --output FILE")
    try:
        from alcove.sdk.nsm import Nsm  # noqa: PLC0415 - it needs Linux
    except ImportError:
        raise UsageError("this system has no security module", hint="run this in an enclave") from None
    with Nsm() as nsm:
        document = nsm.attestation(user_data=user_data, nonce=nonce, public_key=public_key)
    if arguments.output is None:
        output.data(document)
    else:
        _write(arguments.output, document)


def _limited(option: str, value: bytes | None) -> bytes | None:
    if value is not None and len(value) > MAX_FIELD:  # the device would take it, and every verifier refuse it
        raise UsageError(f"{option} has more than the {MAX_FIELD} bytes that a verifier accepts")
    return value


def _user_data(text: str) -> bytes:
    return read_bytes(Path(text[1:]), MAX_FIELD) if text.startswith("@") else text.encode()


def _public_key(path: Path) -> bytes:
    """The DER of a key in DER or PEM."""
    data = read_bytes(path)
    try:
        key = load_pem_public_key(data) if data.startswith(b"-----") else load_der_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(f"`{path}` holds no public key in PEM or DER") from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UsageError(f"cannot write `{path}`: {error.strerror}", code="E19") from None
