from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.attestation.chains import ENCLAVE_ID, NOW, World, make_world

from alcove.attestation.document import parse_document
from alcove.attestation.policy import GenuineOnly, NoDebugMode, Policy, UnsafeAcceptDebugMode
from alcove.attestation.verify import ChainCache, Root, VerifiedAttestation, verify
from alcove.codec import cbor, cose
from alcove.errors import AttestationError, PolicyError

P384_ORDER = int("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)


def check(
    world: World,
    document: bytes,
    *,
    policy: Policy | None = None,
    at: datetime | None = NOW,
    nonce: bytes | None = None,
    max_age: timedelta | None = None,
    cache: ChainCache | None = None,
) -> VerifiedAttestation:
    return verify(
        document, roots=[world.root], policy=policy or NoDebugMode(), at=at, nonce=nonce, max_age=max_age, cache=cache
    )


def step(world: World, document: bytes, **arguments: object) -> int:
    """The number of the step that refuses."""
    with pytest.raises(AttestationError) as caught:
        check(world, document, **arguments)  # type: ignore[arg-type]
    return caught.value.step


REAL = [
    ("aws-2022-10-12-debug", UnsafeAcceptDebugMode()),
    ("aws-2022-10-13-nonce", NoDebugMode()),
    ("aws-2024-08-07", NoDebugMode()),
    ("aws-2025-04-29-pcr16", NoDebugMode()),
]


@pytest.mark.parametrize(("name", "policy"), REAL)
def test_real_documents_verify_at_their_own_time(aws: Path, name: str, policy: Policy) -> None:
    """Documents that AWS issued are accepted below AWS's root, and say who they are."""
    verified = verify((aws / f"{name}.cbor").read_bytes(), roots=[Root.AWS], policy=policy, at=None)
    assert verified.root == Root.AWS
    assert len(verified.steps) == 14
    assert len(verified.certificates) == 5
    assert verified.document.module_id.startswith("i-")


@pytest.mark.parametrize(("name", "policy"), REAL)
def test_real_documents_are_refused_now_and_below_another_root(
    aws: Path, world: World, name: str, policy: Policy
) -> None:
    """They expired, a day later and all the more now, and a root of our own does not vouch for them."""
    data = (aws / f"{name}.cbor").read_bytes()
    assert step(world, data, policy=policy, at=None) == 7
    made = parse_document(data).timestamp
    for at in (made + timedelta(days=1), NOW, datetime.now(UTC)):
        with pytest.raises(AttestationError, match="expired") as caught:
            verify(data, roots=[Root.AWS], policy=policy, at=at)
        assert caught.value.step == 9


def test_a_real_debug_document_is_refused_unless_debug_is_accepted_by_name(aws: Path) -> None:
    """Zero in PCR0 is debug mode; only a policy that decides elsewhere lets it through unasked."""
    data = (aws / "aws-2022-10-12-debug.cbor").read_bytes()
    with pytest.raises(PolicyError, match="debug mode"):
        verify(data, roots=[Root.AWS], policy=NoDebugMode(), at=None)
    verify(data, roots=[Root.AWS], policy=GenuineOnly(), at=None)


def test_our_own_documents_verify(world: World) -> None:
    """A document below our root is accepted below our root."""
    verified = check(world, world.document(user_data=b"hello", nonce=b"n"))
    assert verified.document.module_id == ENCLAVE_ID
    assert verified.document.user_data == b"hello"
    assert verified.document.timestamp == NOW
    assert verified.root == world.root


@pytest.mark.parametrize("tag", ["d2", "d812"])
def test_a_tagged_document_verifies(world: World, tag: str) -> None:
    """COSE allows tag 18 around what it signs."""
    check(world, bytes.fromhex(tag) + world.document())


def test_the_unprotected_header_is_ignored(world: World) -> None:
    """Nobody signs it, so nobody looks at it."""
    parts = cbor.decode(world.document())
    assert isinstance(parts, list)
    parts[1] = {1: -7, "kid": b"whatever"}
    check(world, cbor.encode(parts))


def test_high_and_low_s_both_verify(world: World) -> None:
    """The platform does not normalise s (attestation.md §1)."""
    sign1 = cose.decode_sign1(world.document())
    s = P384_ORDER - int.from_bytes(sign1.signature[48:])
    check(world, cose.encode_sign1(cose.Sign1(sign1.protected, sign1.payload, sign1.signature[:48] + s.to_bytes(48))))


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("value", [0, 1, P384_ORDER, P384_ORDER + 1, (1 << 384) - 1])
def test_signature_numbers_out_of_range_are_refused(world: World, half: int, value: int) -> None:
    """Both r and s lie between 1 and n - 1, and 1 is not the right one."""
    sign1 = cose.decode_sign1(world.document())
    halves = [sign1.signature[:48], sign1.signature[48:]]
    halves[half] = value.to_bytes(48)
    assert step(world, cose.encode_sign1(cose.Sign1(sign1.protected, sign1.payload, b"".join(halves)))) == 11


def test_a_document_of_another_leafs_key_is_refused(world: World) -> None:
    """A genuine chain around somebody else's signature."""
    other = make_world()
    assert step(world, other.document(certificate=world.leaf, cabundle=world.cabundle)) == 11


def test_another_chain_with_the_right_names_is_refused(world: World) -> None:
    """Names are no proof: the root is another, and below our root the signatures do not hold."""
    other = make_world()
    assert step(world, other.document()) == 7
    assert step(world, other.document(cabundle=[world.cabundle[0], *other.cabundle[1:]])) == 8


@pytest.mark.parametrize(
    ("order", "expected"),
    [([3, 2, 1, 0], 7), ([0, 2, 1, 3], 8), ([0, 1, 3], 8), ([0, 2, 3], 8), ([0], 8), ([0, 1, 2], 8), ([1, 2, 3], 7)],
)
def test_a_chain_out_of_order_or_incomplete_is_refused(world: World, order: list[int], expected: int) -> None:
    """Each certificate is issued by the one before it; none may be missing."""
    assert step(world, world.document(cabundle=[world.cabundle[index] for index in order])) == expected


def test_a_repeated_root_is_refused_and_a_long_chain_before_any_signature(world: World) -> None:
    """The root allows itself by name and signature, and then pathLen or the length of the chain speaks."""
    assert step(world, world.document(cabundle=[world.cabundle[0]] * 10)) == 8
    check(world, world.document(cabundle=[world.cabundle[0], *world.cabundle]))  # harmless: it is the pinned one


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("damage", ["trailing", "cut", "rubbish"])
def test_a_corrupt_certificate_is_refused(world: World, index: int, damage: str) -> None:
    """One DER item a certificate, nothing after it."""
    chain = [*world.cabundle, world.leaf]
    chain[index] = {"trailing": chain[index] + b"\0", "cut": chain[index][:-1], "rubbish": b"\x30\x03\x02\x01\x01"}[
        damage
    ]
    assert step(world, world.document(cabundle=chain[:4], certificate=chain[4])) == 6


def test_validity_includes_both_ends(world: World) -> None:
    """Valid exactly at notBefore and at notAfter; a second outside, not (step 9)."""
    data = world.document(timestamp=cbor.Uint64(int(NOW.timestamp()) * 1000))
    leaf = check(world, data).certificates[-1]
    second = timedelta(seconds=1)
    check(world, data, at=leaf.not_before)
    check(world, data, at=leaf.not_after)
    assert step(world, data, at=leaf.not_before - second) == 9
    assert step(world, data, at=leaf.not_after + second) == 9
    assert leaf.not_after - leaf.not_before == timedelta(hours=3, seconds=3)


@pytest.mark.parametrize("later", [timedelta(hours=4), timedelta(days=2), timedelta(days=6), timedelta(days=21)])
def test_an_expired_authority_is_found_in_the_cache_too(world: World, later: timedelta) -> None:
    """Links are cached and dates are not."""
    cache = ChainCache()
    data = world.document()
    check(world, data, cache=cache)
    assert step(world, data, at=NOW + later, cache=cache) == 9


@pytest.mark.parametrize("seconds", [-10, 3 * 3600 + 1])
def test_a_document_made_outside_its_leafs_life_is_refused(world: World, seconds: int) -> None:
    """The timestamp lies inside the leaf's validity (step 12), whatever the chosen time."""
    made = NOW + timedelta(seconds=seconds)
    data = world.document(timestamp=cbor.Uint64(int(made.timestamp() * 1000)))
    assert step(world, data) == 12


def test_a_stale_document_is_refused(world: World) -> None:
    """No older than asked, the limit itself included."""
    data, limit = world.document(), timedelta(minutes=5)
    check(world, data, at=NOW + limit, max_age=limit)
    assert step(world, data, at=NOW + limit + timedelta(milliseconds=1), max_age=limit) == 12
    check(world, data, at=NOW + timedelta(hours=2))


def test_an_archived_document_may_be_asked_for_its_age(world: World) -> None:
    """The chain at the document's own time, and its age by the caller's clock: two questions, two times."""
    data, limit, hour = world.document(), timedelta(minutes=5), timedelta(hours=30)

    def ask(now: datetime) -> None:
        verify(data, roots=[world.root], policy=NoDebugMode(), at=None, now=now, max_age=limit)

    ask(NOW + limit)
    ask(NOW - timedelta(minutes=1))
    for now, reason in ((NOW + hour, "longer ago"), (NOW - timedelta(minutes=2), "in the future")):
        with pytest.raises(AttestationError, match=reason) as caught:
            ask(now)
        assert caught.value.step == 12


def test_an_age_without_a_clock_is_a_mistake(world: World) -> None:
    """At its own time every document is new; a limit that could never refuse anything is refused itself."""
    for age in (timedelta(0), timedelta(days=1)):
        with pytest.raises(ValueError, match="clock"):
            check(world, world.document(), at=None, max_age=age)


def test_an_empty_challenge_is_a_mistake(world: World) -> None:
    """It would be met by any document with an empty nonce."""
    with pytest.raises(ValueError, match="nonce"):
        check(world, world.document(nonce=b""), nonce=b"")


@pytest.mark.parametrize("field", ["user_data", "nonce"])
def test_the_strict_mode_allows_512_bytes(world: World, field: str) -> None:
    """AWS's document names two limits; the larger is the rule and the smaller is on request (attestation.md §5.1)."""

    def ask(size: int, *, strict: bool) -> int | None:
        data = world.document(**{field: bytes(size)})
        try:
            verify(data, roots=[world.root], policy=NoDebugMode(), at=NOW, strict=strict)
        except AttestationError as error:
            return error.step
        return None

    found = [ask(size, strict=strict) for size, strict in ((512, True), (513, True), (1024, False), (1025, False))]
    assert found == [None, 5, None, 5]


def test_a_document_from_the_future_is_refused(world: World) -> None:
    """A minute ahead is a clock that differs; more is not."""
    ahead = [NOW + timedelta(seconds=seconds) for seconds in (60, 61)]
    near, far = (world.document(timestamp=cbor.Uint64(int(made.timestamp() * 1000))) for made in ahead)
    check(world, near)
    assert step(world, far) == 12
    check(world, far, at=None)


@pytest.mark.parametrize("carried", [b"", b"wrong", b"right ", None, ...])
def test_a_nonce_that_is_not_the_challenge_is_refused(world: World, carried: object) -> None:
    """Wrong, empty, null and absent are all not the challenge; it is the policy that is not met."""
    with pytest.raises(PolicyError, match="nonce"):
        check(world, world.document(nonce=carried), nonce=b"right")
    check(world, world.document(nonce=carried))
    check(world, world.document(nonce=b"right"), nonce=b"right")


def test_a_cache_saves_work_and_stays_bounded(world: World) -> None:
    """Two entries a chain, the authorities and the whole; the oldest leave first; what fails is not kept."""
    cache = ChainCache(size=4)
    check(world, world.document(), cache=cache)
    assert len(cache) == 2
    assert (
        check(world, world.document(), cache=cache).certificates[-1]
        is check(world, world.document(), cache=cache).certificates[-1]
    )
    step(
        world, world.document(certificate=world.rebuilt_leaf({1: bytes.fromhex("020101")})), at=NOW + timedelta(days=1)
    )
    for _ in range(3):
        other = make_world()
        check(other, other.document(), cache=cache)
    assert len(cache) == 4
    with pytest.raises(ValueError, match="at least one"):
        ChainCache(size=0)
    assert step(world, make_world().document(), cache=cache) == 7


def test_a_cached_chain_does_not_vouch_for_another_signature(world: World) -> None:
    """The verdict on the COSE signature is never cached."""
    cache = ChainCache()
    data = world.document()
    check(world, data, cache=cache)
    assert step(world, data[:-1] + bytes((data[-1] ^ 1,)), cache=cache) == 11


def test_a_cached_chain_does_not_vouch_for_its_root(world: World) -> None:
    """Trust is asked of the caller's roots each time."""
    cache = ChainCache()
    data = world.document()
    check(world, data, cache=cache)
    with pytest.raises(AttestationError) as caught:
        verify(data, roots=[Root.AWS], policy=NoDebugMode(), at=NOW, cache=cache)
    assert caught.value.step == 7


def test_one_of_several_roots_suffices(world: World) -> None:
    """A caller may trust more than one root, and learns which one it was."""
    verified = verify(world.document(), roots=[Root.AWS, world.root], policy=NoDebugMode(), at=NOW)
    assert verified.root == world.root


def test_mistakes_of_the_caller_are_no_attestation_errors(world: World) -> None:
    """No roots, and a time without a zone, say nothing about the document."""
    naive = NOW.replace(tzinfo=None)
    for roots, at, now in (([], NOW, NOW), ([world.root], naive, NOW), ([world.root], NOW, naive)):
        with pytest.raises(ValueError, match="needs"):
            verify(world.document(), roots=roots, policy=NoDebugMode(), at=at, now=now)


def test_only_the_verifier_makes_a_verified_attestation(world: World) -> None:
    """To hold one is to have verified."""
    verified = check(world, world.document())
    with pytest.raises(TypeError, match="only verify"):
        VerifiedAttestation(verified.document, verified.root, (), NOW, 1, challenged=False, seal=object())
    forged = dataclasses.replace(verified.document, module_id="i-forged")
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(verified, document=forged)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(verified, document=forged, seal=object())


def test_nobody_changes_a_verified_document(world: World) -> None:
    """Neither its fields nor its registers, by accident."""
    verified = check(world, world.document())
    with pytest.raises(dataclasses.FrozenInstanceError):
        verified.document.module_id = "i-forged"  # type: ignore[misc]
    with pytest.raises(TypeError):
        verified.document.pcrs[0] = b"\x09" * 48  # type: ignore[index]


def test_roots_are_named_by_the_fingerprint_of_their_der(world: World) -> None:
    """Of PEM, whatever its line ends, and of hexadecimal with or without colons."""
    pem = world.issuers[0].certificate.public_bytes(Encoding.PEM)
    assert Root.from_pem(pem.replace(b"\n", b"\r\n")) == world.root
    pairs = [world.root.hex[at : at + 2] for at in range(0, 64, 2)]
    assert Root.from_fingerprint(":".join(pairs).upper()) == world.root
    for bad in ("", "00", "zz" * 32):
        with pytest.raises(ValueError, match=r"32 bytes|hexadecimal"):
            Root.from_fingerprint(bad)
    for bad_pem in (b"", b"rubbish", pem + pem):
        with pytest.raises(ValueError):  # the sentence is the library's
            Root.from_pem(bad_pem)


@given(st.binary(max_size=200), st.integers(0, 4300), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_verify_or_raise_the_one_error(insert: bytes, at: int, cut: int) -> None:
    """Whatever is done to a document, the answer is a verified one or AttestationError."""
    data = _SAMPLE[:at] + insert + _SAMPLE[at + cut :]
    if data == _SAMPLE:
        return
    with pytest.raises(AttestationError):
        verify(data, roots=[_WORLD.root], policy=GenuineOnly(), at=NOW)


@given(st.recursive(st.none() | st.booleans() | st.integers(0, 99) | st.text() | st.binary(), st.lists, max_leaves=5))
@settings(max_examples=100, deadline=None)
def test_any_signed_payload_raises_the_one_error(value: object) -> None:
    """A signature makes nonsense genuine nonsense, and no more."""
    with pytest.raises(AttestationError):
        verify(_WORLD.sign(cbor.encode(value)), roots=[_WORLD.root], policy=GenuineOnly(), at=NOW)


_WORLD = make_world()
_SAMPLE = _WORLD.document()
