"""What stands in an enclave's documents is read once; every document means what it meant without that."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.attestation.chains import NOW, World, make_world

from alcove.attestation import AttestationError, ChainCache, GenuineOnly, VerifiedAttestation, verify
from alcove.attestation.document import START, AttestationDocument, parse_payload, standing
from alcove.codec import cbor

WORLD = make_world()
PAYLOAD = cbor.encode(WORLD.fields(nonce=b"n" * 32, public_key=b"key"))
STANDING = standing(PAYLOAD, parse_payload(PAYLOAD))
assert STANDING
TIME = PAYLOAD[START : START + 8]
ASKED = PAYLOAD[START + 8 + len(STANDING.middle) :]
PAIRS = [cbor.encode(name) + cbor.encode(value) for name, value in WORLD.fields(nonce=b"", user_data=b"u").items()]
PIECES = [PAYLOAD, STANDING.start, TIME, STANDING.middle, ASKED, *PAIRS, b"\xf6", b"\xff", b"\x40", b"\xbf"]


def read(payload: bytes, *, strict: bool = False, remembered: bool) -> AttestationDocument | str:
    known = {STANDING.start: STANDING}.get if remembered and STANDING else None
    try:
        return parse_payload(payload, strict=strict, known=known)
    except AttestationError as error:
        return f"{error.step}: {error.message}"


def check(world: World, data: bytes, cache: ChainCache) -> VerifiedAttestation:
    return verify(data, roots=[world.root], policy=GenuineOnly(), at=NOW, cache=cache)


def test_a_payload_comes_apart_into_what_stands_and_what_differs() -> None:
    """Start, time, middle and what was asked for are all of it; the middle goes from `pcrs` to `cabundle`."""
    assert STANDING
    assert STANDING.start + TIME + STANDING.middle + ASKED == PAYLOAD
    assert STANDING.middle.startswith(cbor.encode("pcrs"))
    assert STANDING.middle.endswith(WORLD.cabundle[-1])


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map(b"".join), st.booleans())
def test_pieces_in_any_order_mean_what_they_meant(payload: bytes, strict: bool) -> None:
    """Twice the middle, none of it, it in another place: the same document, or the same refusal."""
    for data in (payload, STANDING.start + TIME + STANDING.middle + payload if STANDING else b""):
        assert read(data, strict=strict, remembered=True) == read(data, strict=strict, remembered=False)


@pytest.mark.parametrize("first", PAIRS)
def test_any_three_pairs_behind_the_middle_mean_what_they_meant(first: bytes) -> None:
    """A key that is in front of the middle, or in it, or there twice, is seen."""
    assert STANDING
    for second, third in itertools.product(PAIRS, PAIRS):
        payload = STANDING.start + TIME + STANDING.middle + first + second + third
        assert read(payload, remembered=True) == read(payload, remembered=False)


@given(st.integers(0, len(PAYLOAD)), st.integers(0, 3), st.binary(max_size=3))
def test_a_change_anywhere_means_what_it_meant(at: int, cut: int, new: bytes) -> None:
    """Bytes that are changed, taken out or put in, wherever it is."""
    payload = PAYLOAD[:at] + new + PAYLOAD[at + cut :]
    assert read(payload, remembered=True) == read(payload, remembered=False)


@pytest.mark.parametrize("field", ["user_data", "nonce", "public_key"])
@pytest.mark.parametrize("size", [0, 1, 512, 513, 1024, 1025])
def test_what_an_enclave_asks_for_keeps_its_limits(field: str, size: int) -> None:
    """Fields beside what stands are checked in every document."""
    payload = cbor.encode(WORLD.fields(**{field: bytes(size)}))
    for strict in (True, False):
        assert read(payload, strict=strict, remembered=True) == read(payload, strict=strict, remembered=False)


@pytest.mark.parametrize("time", [0, 1, 1 << 63, (1 << 64) - 1])
def test_a_time_keeps_its_limits(time: int) -> None:
    """So is the time."""
    payload = cbor.encode(WORLD.fields(timestamp=cbor.Uint64(time)))
    assert read(payload, remembered=True) == read(payload, remembered=False)


@pytest.mark.parametrize(
    "changes", [{"module_id": "i-1-enc2"}, {"digest": ...}, {"extra": 1}, {"pcrs": ..., "zpcrs": {0: bytes(48)}}]
)
def test_another_shape_is_not_remembered(changes: dict[str, object]) -> None:
    """Payloads that no platform makes are read as a whole each time."""
    assert standing(cbor.encode(WORLD.fields(**changes)), parse_payload(PAYLOAD)) is None
    indefinite = b"\xbf" + PAYLOAD[1:] + b"\xff"
    assert parse_payload(indefinite) == parse_payload(PAYLOAD)
    assert standing(indefinite, parse_payload(PAYLOAD)) is None


def test_verified_documents_alone_are_remembered(world: World) -> None:
    """A second document is read from the first; a forged one leaves nothing behind."""
    cache, start = ChainCache(), cbor.encode(world.fields())[:START]
    data = world.document()
    forged = data[:-1] + bytes((data[-1] ^ 1,))
    with pytest.raises(AttestationError):
        check(world, forged, cache)
    assert cache.standing(start) is None
    first = check(world, world.document(nonce=b"1"), cache)
    second = check(world, world.document(nonce=b"2"), cache)
    assert second.document.cabundle is first.document.cabundle
    assert (first.document.nonce, second.document.nonce) == (b"1", b"2")


def test_registers_that_change_are_seen(world: World) -> None:
    """An enclave extends a register between two documents: the second one has the new value, and so has a third."""
    cache, changed = ChainCache(), {**world.pcrs, 16: b"\x07" * 48}
    check(world, world.document(), cache)
    for _ in range(2):
        assert check(world, world.document(pcrs=changed), cache).document.pcrs == changed
    assert check(world, world.document(), cache).document.pcrs == world.pcrs


def test_what_is_remembered_does_not_vouch_for_its_chain(world: World) -> None:
    """Dates and roots are asked for each time, whoever remembers."""
    cache = ChainCache()
    data = world.document()
    check(world, data, cache)
    with pytest.raises(AttestationError) as caught:
        verify(data, roots=[world.root], policy=GenuineOnly(), at=NOW + timedelta(days=30), cache=cache)
    assert caught.value.step == 9
    with pytest.raises(AttestationError) as caught:
        verify(data, roots=[make_world().root], policy=GenuineOnly(), at=NOW, cache=cache)
    assert caught.value.step == 7


def test_so_many_enclaves_are_remembered_and_no_more(world: World) -> None:
    """The one that was seen least recently goes."""
    cache = ChainCache(2)
    names = [f"i-0123456789abcdef0-enc{number:016x}" for number in range(3)]
    for name in names:
        check(world, world.document(module_id=name), cache)
    starts = [cbor.encode(world.fields(module_id=name))[:START] for name in names]
    assert [cache.standing(start) is not None for start in starts] == [False, True, True]
