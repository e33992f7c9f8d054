"""The vectors of attestation documents: each comes to the outcome, and the step, that its file names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.conformance.corpus import VECTORS
from vectors.attestation.generate import COLLECTIONS, DIRECTORY
from vectors.collection import differences, texts
from vectors.vectorfile import Vector, load

from alcove.attestation import (
    PCR,
    AllOf,
    AttestationError,
    ChainCache,
    GenuineOnly,
    NoDebugMode,
    Policy,
    PolicyError,
    Root,
    UnsafeAcceptDebugMode,
    verify,
)
from alcove.attestation.document import STRICT_FIELD

CASES = load(VECTORS / "attestation")
EVERY = pytest.mark.parametrize("vector", CASES, ids=[case.name.removeprefix("document/") for case in CASES])


def policy_of(vector: Vector) -> Policy:
    """What the vector requires of the content."""
    pins: list[Policy] = []
    for required in vector.all("require"):
        register, value = required.split()
        pins.append(PCR(int(register.removeprefix("PCR")), bytes.fromhex(value)))
    if vector.get("debug") == "accepted":
        pins.append(UnsafeAcceptDebugMode())
    return AllOf(pins) if pins else NoDebugMode()


def outcome(vector: Vector, cache: ChainCache | None = None) -> tuple[str, str]:
    """What the verifier says, in the vector's words."""
    at, nonce, age = vector.get("at"), vector.get("nonce"), vector.get("max-age")
    assert vector.get("limit", str(STRICT_FIELD)) == str(STRICT_FIELD)
    try:
        verify(
            vector.payload,
            roots=[Root.from_fingerprint(vector.get("root"))],
            policy=policy_of(vector),
            at=None if at == "document" else datetime.fromisoformat(at),
            nonce=bytes.fromhex(nonce) if nonce else None,
            max_age=timedelta(seconds=int(age)) if age else None,
            max_skew=timedelta(seconds=int(vector.get("skew", "60"))),
            strict=bool(vector.get("limit")),
            cache=cache,
        )
    except PolicyError as error:
        return "unwelcome", str(error.step)
    except AttestationError as error:
        return "invalid", str(error.step)
    return "verified", ""


@EVERY
def test_every_document_has_its_outcome(vector: Vector) -> None:
    """Verified, invalid in the one step that applies, or unwelcome; nothing else is ever raised."""
    assert outcome(vector) == (vector.get("expect"), vector.get("step"))


def test_a_cache_changes_no_outcome() -> None:
    """All vectors with one cache, twice and in both orders: what was proven before vouches for nothing else."""
    cache = ChainCache()
    for vector in (*CASES, *reversed(CASES)):
        assert outcome(vector, cache) == (vector.get("expect"), vector.get("step")), vector.name


def test_invalid_documents_are_invalid_without_a_policy() -> None:
    """No policy is needed to refuse them, and none hides the reason."""
    for vector in CASES:
        if vector.get("expect") == "invalid" and vector.get("at") != "document":
            with pytest.raises(AttestationError) as caught:
                verify(
                    vector.payload,
                    roots=[Root.from_fingerprint(vector.get("root"))],
                    policy=GenuineOnly(),
                    at=datetime.fromisoformat(vector.get("at")).astimezone(UTC),
                    max_age=timedelta(seconds=int(vector.get("max-age", "99999"))),
                    strict=bool(vector.get("limit")),
                )
            assert not isinstance(caught.value, PolicyError)


def test_the_files_are_what_the_generators_make() -> None:
    """Every committed vector is made again, byte for byte; none is missing, left over or made twice under one name."""
    assert not differences(DIRECTORY, COLLECTIONS)
    assert len(texts(COLLECTIONS)) == sum(len(list(each.vectors())) for each in COLLECTIONS)


def test_each_step_that_refuses_has_vectors() -> None:
    """No part of the recipe goes untested."""
    steps = {vector.get("step") for vector in CASES}
    assert steps == {"", *(str(step) for step in range(1, 14))}
