"""Ciphertext blobs: bound to everything, malleable in nothing."""

from __future__ import annotations

import base64
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kms.in_process import in_process

from alcove.kms.blob import Header, canonical_context, material_id, seal, unseal

KEY_ID = "11111111-2222-3333-4444-555555555555"
MATERIAL = bytes(range(32))
HEADER = Header(KEY_ID, material_id(MATERIAL, KEY_ID), bytes(32))
CONTEXT = {"app": "demo"}


def test_a_blob_opens_with_its_material_and_context() -> None:
    """What goes in comes out; the header is readable without the key."""
    blob = seal(b"secret", MATERIAL, HEADER, CONTEXT)
    assert Header.parse(blob) == HEADER
    assert unseal(blob, MATERIAL, CONTEXT) == b"secret"


def test_no_two_blobs_are_alike(tmp_path: Path) -> None:
    """The service draws each nonce anew: the same plaintext under one key, a thousand times, is never the same blob."""
    with in_process(tmp_path) as kms:
        key = kms.call("CreateKey")["KeyMetadata"]["KeyId"]
        blobs = [
            base64.b64decode(kms.call("Encrypt", KeyId=key, Plaintext="eA==")["CiphertextBlob"]) for _ in range(1000)
        ]
    assert len({Header.parse(blob).nonce for blob in blobs}) == 1000
    assert len({blob[-17:] for blob in blobs}) == 1000  # one byte of ciphertext and its tag: another key each time


def test_every_flipped_bit_is_refused() -> None:
    """No bit of a blob can change unseen (kms.md §13.2)."""
    blob = seal(b"s", MATERIAL, HEADER, CONTEXT)
    for bit in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            unseal(bytes(changed), MATERIAL, CONTEXT)


def test_every_other_length_is_refused() -> None:
    """Cut or longer blobs never open."""
    blob = seal(b"secret", MATERIAL, HEADER, CONTEXT)
    for wrong in [*(blob[:end] for end in range(len(blob))), blob + b"\0"]:
        with pytest.raises(ValueError):
            unseal(wrong, MATERIAL, CONTEXT)


@pytest.mark.parametrize("context", [{}, {"app": "Demo"}, {"App": "demo"}, {"app": "demo", "b": ""}])
def test_another_context_is_refused(context: dict[str, str]) -> None:
    """The encryption context must match exactly, case included."""
    with pytest.raises(ValueError):
        unseal(seal(b"secret", MATERIAL, HEADER, CONTEXT), MATERIAL, context)


def test_the_overhead_fits() -> None:
    """4096 bytes of plaintext stay under 6144 bytes of blob (kms.md §13.2)."""
    assert len(seal(bytes(4096), MATERIAL, HEADER, {})) <= 6144


def test_contexts_that_other_emulators_confuse_differ() -> None:
    """The collisions of kms.md §13.1."""
    contexts: list[dict[str, str]] = [{"a": "bc"}, {"ab": "c"}, {"a": "b", "c": "d"}, {"a": "bcd"}]
    contexts += [{"": "ab"}, {"a": "b"}, {}, {"": ""}]
    for one, other in combinations(contexts, 2):
        assert canonical_context(one) != canonical_context(other)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), st.text()), st.dictionaries(st.text(), st.text()))
def test_two_contexts_are_equal_exactly_when_their_forms_are(one: dict[str, str], other: dict[str, str]) -> None:
    """The canonical form is injective and free of order."""
    try:
        forms = canonical_context(one), canonical_context(other)
    except UnicodeEncodeError:
        return
    assert (forms[0] == forms[1]) == (one == other)
    assert canonical_context(dict(reversed(one.items()))) == forms[0]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_blob_or_refused(data: bytes) -> None:
    """Garbage is a ValueError and nothing else."""
    with pytest.raises(ValueError):
        unseal(data, MATERIAL, {})
