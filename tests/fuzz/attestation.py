"""Fuzz targets of the verifier, behind the signatures that would stop a fuzzer at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from vectors.attestation import world
from vectors.attestation.items import octets
from vectors.vectorfile import load

from alcove.attestation import (
    AttestationDocument,
    AttestationError,
    ChainCache,
    GenuineOnly,
    PolicyError,
    RevocationLists,
    Root,
    VerifiedAttestation,
    parse_policy,
    pki,
    verify,
)
from alcove.attestation.document import MAX_DOCUMENT, parse_payload
from alcove.codec import cose
from alcove.errors import InputError, UsageError

VECTORS = Path(__file__).parent.parent.parent / "vectors" / "attestation"

_CACHE = ChainCache(8)


@cache
def _root() -> Root:
    return Root.from_fingerprint(world.fingerprint(world.root()))


def _verify(data: bytes, at: datetime | None = world.AT) -> VerifiedAttestation | None:
    try:
        return verify(data, roots=[_root()], policy=GenuineOnly(), at=at, cache=_CACHE)
    except AttestationError as error:
        assert 1 <= error.step <= 12  # noqa: PT017 - no test of the error, a property of every one
        return None


def whole(data: bytes) -> None:
    """Any bytes are verified or an AttestationError; what is verified, is with a cache and without one."""
    verified = _verify(data)
    if verified is not None:
        again = verify(data, roots=[_root()], policy=GenuineOnly(), at=world.AT)
        assert again.document == verified.document
        assert len(data) <= MAX_DOCUMENT


def payload(data: bytes) -> None:
    """Any signed payload is verified or an AttestationError; only a certificate of the key that signed will do."""
    verified = _verify(world.envelope(data), at=None)
    if verified is not None:
        assert verified.certificates[-1].public_key == world.key(world.LEAF).public_key()


def leaf(data: bytes) -> None:
    """Any bytes in the leaf's place, in a document that is otherwise in order, are refused, or the root signed them."""
    verified = _verify(world.document(certificate=octets(data)))
    if verified is not None:
        first, last = verified.certificates
        assert last.der == data
        assert last.is_signed_by(first)


def policy(data: bytes) -> None:
    """Any text is a policy or a UsageError of one line, and a policy decides about any document."""
    text = data.decode(errors="replace")
    try:
        found = parse_policy(text)
    except UsageError as error:
        assert "\n" not in error.message  # noqa: PT017 - no test of the error, a property of every one
        return
    with contextlib.suppress(PolicyError):
        found.check(AttestationDocument("i-1-enc1", 1, {0: b"\1" * 48}, b"leaf", (b"root",)))


def lists(data: bytes) -> None:
    """Any bytes are revocation lists or an InputError."""
    with contextlib.suppress(InputError):
        assert len(RevocationLists.from_files(data)) >= 1


def policies() -> Iterator[bytes]:
    """One of everything that a file may hold."""
    digest = "01" * 48
    yield f"PCR0: '{digest}'\nParent: [i-0123456789abcdef0]\nUnsafeAcceptDebugMode: true\n".encode()
    yield f"AnyOf:\n- &one {{ImageSha384: '{digest}'}}\n- AllOf: [*one]\n".encode()
    yield f'{{"Measurements": {{"HashAlgorithm": "Sha384", "PCR8": "{digest}"}}}}'.encode()
    yield b"Role: arn:aws:iam::123456789012:role/name\nSignedBy: signer.pem\n"


def revoked() -> Iterator[bytes]:
    """A list of ours with an entry, in both forms."""
    key = world.key(world.ROOT)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    issuer = pki.issue_root(key, serial=1, now=now)
    entry = x509.RevokedCertificateBuilder().serial_number(7).revocation_date(now).build()
    made = pki.issue_crl(issuer, [entry], number=1, now=now, life=timedelta(days=30))
    yield from (made.public_bytes(form) for form in (Encoding.DER, Encoding.PEM))


def documents() -> Iterator[bytes]:
    """The vectors."""
    for vector in load(VECTORS):
        if len(vector.payload) <= MAX_DOCUMENT:
            yield vector.payload


def payloads() -> Iterator[bytes]:
    """The payloads in the vectors whose envelope can be opened."""
    for data in documents():
        with contextlib.suppress(ValueError):
            yield cose.decode_sign1(data).payload


def leaves() -> Iterator[bytes]:
    """The leaves in the vectors whose payload can be read."""
    for data in payloads():
        with contextlib.suppress(AttestationError):
            yield parse_payload(data).certificate
