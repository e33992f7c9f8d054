"""What the commands about attestation are given: documents, roots, times, policies."""

from __future__ import annotations

import binascii
import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from alcove.attestation.document import MAX_DOCUMENT
from alcove.attestation.policy import NoDebugMode, Policy, UnsafeAcceptDebugMode
from alcove.attestation.policy_file import parse_policy
from alcove.attestation.verify import Root
from alcove.errors import AttestationError, UsageError

MAX_FILE: Final = 1 << 20  # bytes of a policy, a certificate or a key
_COSE_STARTS: Final = (b"\x84", b"\xd2", b"\xd8\x12")  # attestation.md §1
_ROOT_HINT: Final = "give --root: aws, a PEM file or sha256:HEX"


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """A file's bytes; of one that is larger than the caller's `limit`, one more than that.

    Raises:
        UsageError: The file cannot be read; or has more than `MAX_FILE` bytes, where the caller has no limit: part of a
            policy would be another policy.
    """
    most = MAX_FILE if limit is None else limit
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}", code="E19") from None
    if limit is None and len(data) > most:
        raise UsageError(f"`{path}` has more than {most} bytes")
    return data


def read_document(name: str) -> bytes:
    """A document's bytes, from a file or, for ``-``, from standard input."""
    return sys.stdin.buffer.read(MAX_DOCUMENT + 1) if name == "-" else read_bytes(Path(name), MAX_DOCUMENT)


def hint_at_text(error: AttestationError, document: bytes) -> AttestationError:
    """The error, with a hint when somebody forgot to decode the document."""
    text = b"".join(document.split())
    for name, decode, command in (
        ("hexadecimal", binascii.unhexlify, "xxd -r -p FILE document.cbor"),
        ("base64", binascii.a2b_base64, "base64 -d FILE > document.cbor"),
    ):
        with contextlib.suppress(binascii.Error):
            if decode(text).startswith(_COSE_STARTS):
                error.hint = f"this is {name}; decode it first: {command}"
                break
    return error


def parse_roots(texts: list[str] | None, *, create: bool = True) -> tuple[Root, ...]:
    """Trust anchors from ``aws``, ``sha256:HEX`` or PEM files; without any, this machine's own.

    Args:
        texts: What the caller gave.
        create: Make this machine's root when there is none; whoever only verifies makes none.

    Raises:
        UsageError: A text is no root, or there is none.
    """
    try:
        return tuple(_root(text) for text in texts) if texts else _own_roots(create=create)
    except ValueError as error:
        raise UsageError(f"this is no root: {error}", hint="give aws, a PEM file or sha256:HEX") from None


def _root(text: str) -> Root:
    if text == "aws":
        return Root.AWS
    if text.startswith("sha256:"):
        return Root.from_fingerprint(text.removeprefix("sha256:"))
    pem = read_bytes(Path(text))
    try:
        return Root.from_pem(pem)
    except ValueError:
        raise ValueError(f"`{text}` does not hold one certificate in PEM") from None


def _own_roots(*, create: bool) -> tuple[Root, ...]:
    try:
        from alcove.attestation.authority import Authority  # noqa: PLC0415 - not the verifier's
        from alcove.enclave.paths import Paths  # noqa: PLC0415
    except ImportError:  # enclaves, and so roots of their own, are for Linux
        raise UsageError("this system has no root of its own", hint=_ROOT_HINT) from None
    directory = Paths.from_environment().authority
    if create:
        return Authority.open(directory).trusted
    try:
        return Authority.load(directory).trusted
    except UsageError as error:
        raise UsageError(f"this machine has no root of its own: {error.message}", hint=_ROOT_HINT) from None


def parse_time(text: str) -> datetime | None:
    """A time, aware; None for the document's own. UsageError for anything else."""
    if text == "now":
        return datetime.now(UTC)
    if text == "document":
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"`{text}` is no time", hint="give now, document, or such as 2026-01-02T03:04:05Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def parse_hex(option: str, text: str | None) -> bytes | None:
    """The bytes that an option gives in hexadecimal; UsageError when it is empty or something else."""
    if text is None:
        return None
    try:
        value = bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"{option} is not hexadecimal") from None
    if not value:
        raise UsageError(f"{option} is empty", hint="leave it out when there is none")
    return value


def parse_policy_file(path: Path | None, *, allow_debug: bool) -> Policy:
    """The policy in a file; without one, whatever is genuine and not in debug mode. UsageError for no policy."""
    if path is None:
        return UnsafeAcceptDebugMode() if allow_debug else NoDebugMode()
    text = read_bytes(path).decode(errors="replace")
    return parse_policy(text, read_file=lambda name: read_bytes(path.parent / name), allow_debug=allow_debug)
