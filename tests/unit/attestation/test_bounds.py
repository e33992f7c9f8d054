"""What hostile input of the largest size costs: counted, not timed, for a loaded machine is no fault of the code."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from types import FrameType

import pytest
from benchmarks.attestation import hostile_documents
from tests.unit.attestation.chains import NOW, World, make_world

from alcove.attestation import AttestationError, ChainCache, NoDebugMode, VerifiedAttestation, verify
from alcove.attestation.document import MAX_DOCUMENT

NAMES = [*hostile_documents(make_world().document())]
CALLS = 8 * MAX_DOCUMENT  # of functions, a few for each byte
MEMORY = 2 << 20  # bytes


def check(world: World, document: bytes, cache: ChainCache | None = None) -> VerifiedAttestation:
    return verify(document, roots=[world.root], policy=NoDebugMode(), at=NOW, cache=cache)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_documents_cost_little_work_and_memory(world: World, name: str) -> None:
    """Refused after a number of calls, and with an amount of memory, that their size bounds."""
    document, calls = hostile_documents(world.document())[name], 0
    assert len(document) <= MAX_DOCUMENT

    def count(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        with pytest.raises(AttestationError):
            check(world, document)
    finally:
        sys.setprofile(None)
    assert calls < CALLS
    tracemalloc.start()
    try:
        with pytest.raises(AttestationError):
            check(world, document)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY


def test_threads_share_a_cache(world: World) -> None:
    """Chains come and go under their hands; each document is verified all the same, and the cache keeps its size."""
    cache = ChainCache(2)
    worlds = [world, *(make_world() for _ in range(2))]
    documents = [(each, each.document()) for each in worlds]
    failed: list[Exception] = []

    def run() -> None:
        try:
            for each, document in documents * 20:
                assert check(each, document, cache).root == each.root
        except Exception as error:  # noqa: BLE001 - shown in the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(cache) <= 2
