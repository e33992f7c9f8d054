"""The vectors, for the tests of this directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from vectors.vectorfile import Vector, load

from alcove.errors import ImageFormatError

VECTORS = Path(__file__).parent.parent.parent / "vectors"


def vectors(kind: str, *, but: str = "") -> pytest.MarkDecorator:
    """A parameter `vector` for each vector of a kind, but for those with that outcome."""
    cases = [vector for vector in load(VECTORS / "eif" / kind) if vector.get("expect") != but]
    assert cases
    return pytest.mark.parametrize("vector", cases, ids=[case.name for case in cases])


def check_fault(vector: Vector, error: ImageFormatError) -> None:
    """The error must be at the field and the offset that the vector names."""
    offset = vector.get("offset")
    assert (error.field, error.offset) == (vector.get("field"), int(offset) if offset else None)
