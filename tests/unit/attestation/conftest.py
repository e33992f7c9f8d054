"""One chain below a test root, and the folder of real documents."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.attestation.chains import World, make_world


@pytest.fixture(scope="session")
def world() -> World:
    """One chain for all tests, which do not change it."""
    return make_world()


def aws_documents() -> Path | None:
    """The folder with real documents, beside the repository or named by ``ALCOVE_AWS_DOCUMENTS``."""
    beside = Path(__file__).parents[4] / "shared" / "vectors" / "attestation"
    folder = Path(os.environ.get("ALCOVE_AWS_DOCUMENTS", beside))
    return folder if (folder / "aws-2024-08-07.cbor").exists() else None


@pytest.fixture(scope="session")
def aws() -> Path:
    """The folder with real documents; skips where it is absent."""
    folder = aws_documents()
    if folder is None:
        pytest.skip("real AWS documents are not here; name their folder in ALCOVE_AWS_DOCUMENTS")
    return folder
