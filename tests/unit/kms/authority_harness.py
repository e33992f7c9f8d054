"""A real attestation authority, as the tests use it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from alcove.attestation.attester import Attester
from alcove.attestation.authority import Authority

INSTANCE = "i-0123456789abcdef0"
REGION = "us-east-1"


def make_authority(directory: Path) -> Authority:
    """A root that is some minutes old, so that its documents can be old."""
    return Authority.create(directory, before())


def make_attester(authority: Authority) -> Attester:
    """What signs the documents of one enclave."""
    return Attester(authority.parent_identity(INSTANCE, REGION, before()), f"{INSTANCE}-enc0123456789abcdef")


def before() -> datetime:
    """Ten minutes ago."""
    return datetime.now(UTC) - timedelta(minutes=10)
