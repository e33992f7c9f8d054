"""Every byte of a document, changed: refused, all of them (attestation.md §6)."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from tests.unit.attestation.chains import NOW, World

from alcove.attestation import AttestationError, ChainCache, GenuineOnly, Root, verify

pytestmark = pytest.mark.slow

UNPROTECTED_AT = 6  # offset of the empty unprotected header in every untagged document


def survivors(data: bytes, root: Root, at: datetime | None, masks: range | tuple[int, ...]) -> list[tuple[int, int]]:
    """Offset and mask of each change that is not refused with an AttestationError."""
    found, cache = [], ChainCache()
    verify(data, roots=[root], policy=GenuineOnly(), at=at, cache=cache)
    for index in range(len(data)):
        for mask in masks:
            changed = data[:index] + bytes((data[index] ^ mask,)) + data[index + 1 :]
            try:
                verify(changed, roots=[root], policy=GenuineOnly(), at=at, cache=cache)
            except AttestationError:
                continue
            found.append((index, mask))
    return found


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_every_changed_byte_of_our_document_is_found(world: World, mask: int) -> None:
    """One bit, the bit of the CBOR types, all bits: 100 % are refused, with fields of every kind in the document."""
    data = world.document(public_key=b"key", user_data=b"", nonce=b"n" * 32)
    assert survivors(data, world.root, NOW, (mask,)) == []


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("aws-2022-10-12-debug", 0xFF),
        ("aws-2022-10-13-nonce", 0x80),
        ("aws-2024-08-07", 0x01),
        ("aws-2025-04-29-pcr16", 0x10),
    ],
)
def test_every_changed_byte_of_a_real_document_is_found(aws: Path, name: str, mask: int) -> None:
    """The same for documents that AWS issued."""
    assert survivors((aws / f"{name}.cbor").read_bytes(), Root.AWS, None, (mask,)) == []


def test_every_other_value_of_the_first_bytes_and_the_signature_is_found(world: World) -> None:
    """All 255 other values of each byte of the heads, and of the signature's first and last byte of each number."""
    data = world.document()
    places = [*range(10), *(len(data) - at for at in (98, 97, 96, 49, 48, 1))]
    for index in places:
        for value in set(range(256)) - {data[index]}:
            changed = data[:index] + bytes((value,)) + data[index + 1 :]
            with pytest.raises(AttestationError):
                verify(changed, roots=[world.root], policy=GenuineOnly(), at=NOW)


def test_only_the_unprotected_header_is_nobodys(world: World) -> None:
    """A map in its place, whatever it holds, changes nothing; anything but a map is refused."""
    data = world.document()
    assert data[UNPROTECTED_AT] == 0xA0
    for header, accepted in ((b"\xa1\x01\x26", True), (b"\xbf\xff", True), (b"\x80", False), (b"\xf6", False)):
        changed = data[:UNPROTECTED_AT] + header + data[UNPROTECTED_AT + 1 :]
        try:
            verify(changed, roots=[world.root], policy=GenuineOnly(), at=NOW)
            found = True
        except AttestationError:
            found = False
        assert found == accepted


@pytest.mark.parametrize("at", range(0, 4000, 131))
def test_a_document_that_is_cut_or_continued_is_refused(world: World, at: int) -> None:
    """Nothing may be missing, nothing may follow."""
    data = world.document()
    for changed in (data[:at], data + data[: at + 1]):
        with pytest.raises(AttestationError):
            verify(changed, roots=[world.root], policy=GenuineOnly(), at=NOW)
