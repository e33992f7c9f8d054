from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.attestation.chains import World

from alcove.attestation.document import AttestationDocument
from alcove.attestation.policy import (
    PCR,
    AllOf,
    AnyOf,
    GenuineOnly,
    ImageSHA384,
    NoDebugMode,
    Parent,
    Policy,
    PublicKey,
    Role,
    SignedBy,
    UnsafeAcceptDebugMode,
    UserData,
)
from alcove.errors import PolicyError
from alcove.image.pcr import pcr_of_certificate

ZERO = bytes(48)
ONE = b"\1" * 48
TWO = b"\2" * 48


def document(pcrs: dict[int, bytes]) -> AttestationDocument:
    return AttestationDocument("i-1-enc1", 1, pcrs, b"leaf", (b"root",))


NORMAL = document({0: ONE, 1: TWO, 2: ONE, 3: TWO, 8: ZERO})
DEBUG = document({0: ZERO, 1: ZERO, 2: ZERO, 3: TWO, 8: ZERO})


def accepts(policy: Policy, claims: AttestationDocument) -> bool:
    try:
        policy.check(claims)
    except PolicyError:
        return False
    return True


@pytest.mark.parametrize(
    ("policy", "normal", "debug"),
    [
        (GenuineOnly(), True, True),
        (NoDebugMode(), True, False),
        (UnsafeAcceptDebugMode(), True, True),
        (PCR(0, ONE), True, False),
        (PCR(0, TWO), False, False),
        (PCR(0, ZERO), False, False),
        (PCR(3, TWO), True, False),
        (PCR(4, TWO), False, False),
        (PCR(8, ZERO), False, False),
        (ImageSHA384(ONE), True, False),
        (ImageSHA384(TWO), False, False),
        (AllOf([PCR(0, ONE), PCR(1, TWO)]), True, False),
        (AllOf([PCR(0, ONE), PCR(1, ONE)]), False, False),
        (AllOf([PCR(3, TWO), UnsafeAcceptDebugMode()]), True, True),
        (AllOf([UnsafeAcceptDebugMode(), PCR(0, ONE)]), True, False),
        (AllOf([UnsafeAcceptDebugMode(), PCR(0, ZERO)]), False, True),
        (AllOf([UnsafeAcceptDebugMode(), PCR(8, ZERO)]), True, True),
        (AllOf([GenuineOnly(), PCR(3, TWO)]), True, False),
        (AnyOf([PCR(0, TWO), PCR(0, ONE)]), True, False),
        (AnyOf([PCR(0, TWO), PCR(1, ONE)]), False, False),
        (AnyOf([AllOf([PCR(3, TWO), UnsafeAcceptDebugMode()]), PCR(0, TWO)]), True, True),
        (AnyOf([AllOf([PCR(3, ONE), UnsafeAcceptDebugMode()]), PCR(3, TWO)]), True, False),
        (AllOf([UnsafeAcceptDebugMode(), AnyOf([PCR(3, TWO), PCR(3, ONE)])]), True, True),
    ],
)
def test_policies_accept_what_they_say(policy: Policy, normal: bool, debug: bool) -> None:
    """Anything that pins a register refuses debug mode, unless that is accepted by name beside it."""
    assert (accepts(policy, NORMAL), accepts(policy, DEBUG)) == (normal, debug)


def test_zero_in_one_image_register_is_debug_mode() -> None:
    """PCR0, PCR1 and PCR2 are never zero otherwise; PCR8 is zero for every unsigned image."""
    for index in (0, 1, 2):
        assert not accepts(NoDebugMode(), document({**NORMAL.pcrs, index: ZERO}))
    for index in (1, 2):
        assert accepts(NoDebugMode(), document({at: value for at, value in NORMAL.pcrs.items() if at != index}))


def test_a_document_without_pcr0_may_be_of_debug_mode() -> None:
    """What is not there cannot show that it is not zero."""
    sparse = document({3: TWO})
    assert not accepts(NoDebugMode(), sparse)
    assert not accepts(PCR(3, TWO), sparse)
    assert accepts(AllOf([PCR(3, TWO), UnsafeAcceptDebugMode()]), sparse)


def test_a_missing_register_is_named() -> None:
    """A sparse document does not match by position."""
    with pytest.raises(PolicyError, match="PCR5 is expected and the document does not have it") as caught:
        PCR(5, ONE).check(NORMAL)
    assert caught.value.step == 13


@pytest.mark.parametrize("kind", [AllOf, AnyOf])
def test_an_empty_policy_is_a_mistake(kind: type[AllOf | AnyOf]) -> None:
    """No policies must not mean "accept all"."""
    with pytest.raises(ValueError, match="empty"):
        kind([])


@pytest.mark.parametrize(("index", "size"), [(-1, 48), (32, 48), (0, 0), (0, 47)])
def test_a_register_that_cannot_be_is_a_mistake(index: int, size: int) -> None:
    """Registers are numbered 0 to 31 and hold digests."""
    with pytest.raises(ValueError, match="cannot be"):
        PCR(index, bytes(size))


def test_debug_mode_is_no_alternative() -> None:
    """In a list of alternatives it would accept everything: it is a mistake there, however deep it hides."""
    for nothing in (UnsafeAcceptDebugMode(), GenuineOnly(), AllOf([AllOf([UnsafeAcceptDebugMode()]), GenuineOnly()])):
        with pytest.raises(ValueError, match="accept everything"):
            AnyOf([PCR(0, ONE), nothing])


def test_a_policy_does_not_change_with_the_list_it_was_made_of() -> None:
    """An `AllOf` that could be emptied later would accept everything."""
    policies: list[Policy] = [PCR(0, TWO)]
    both = AllOf(policies), AnyOf(policies)
    policies.clear()
    assert not any(accepts(policy, NORMAL) for policy in both)


ROLE = "arn:aws:iam::123456789012:role/Example"
INSTANCE = "i-0123456789abcdef0"
PCR3 = "2eb6e4f69b5abfb9b5e67a4f72840d7acebb82c44dcdf2180be332323f78e792490712da5459de305eb388b9acd842c9"  # eif.md §2
PCR4 = "d6432900ac1c343cb40286898792c55e962aef0cc35c4910c0c286145b51af19e782cb21cc31a042671d7dfbd398251c"


def test_role_and_parent_are_the_registers_that_measure_them() -> None:
    """PCR3 and PCR4 extend a text by itself (eif.md §2, whose values these are)."""
    found = document({**NORMAL.pcrs, 3: bytes.fromhex(PCR3), 4: bytes.fromhex(PCR4)})
    assert accepts(AllOf([Role(ROLE), Parent(INSTANCE)]), found)
    assert not accepts(Role(ROLE + "s"), found)
    assert not accepts(Parent(INSTANCE[:-1] + "1"), found)
    without_role = document({**NORMAL.pcrs, 3: ZERO})
    assert not accepts(Role(ROLE), without_role)


def test_the_signer_is_pcr8() -> None:
    """It extends the digest of the certificate's DER; no signer is zero, and no policy accepts it."""
    certificate = b"DER"
    pcr8 = hashlib.sha384(ZERO + hashlib.sha384(certificate).digest()).digest()
    assert accepts(SignedBy(certificate), document({**NORMAL.pcrs, 8: pcr8}))
    assert not accepts(SignedBy(b"other"), document({**NORMAL.pcrs, 8: pcr8}))
    assert not accepts(SignedBy(certificate), NORMAL)


def test_the_signer_of_a_real_image_is_the_one_that_measuring_finds(tmp_path: Path, world: World) -> None:
    """The policy and the `pcr` command agree about a certificate's register."""
    pem = world.issuers[0].certificate.public_bytes(Encoding.PEM)
    (tmp_path / "signer.pem").write_bytes(pem + pem)
    pcr8 = pcr_of_certificate(tmp_path / "signer.pem")
    assert accepts(SignedBy.from_pem(pem), document({**NORMAL.pcrs, 8: bytes(pcr8)}))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Parent, ""), (Parent, "i-0123456789abcdeg0"), (Parent, "i-0123456789ABCDEF0"), (Parent, INSTANCE + "-enc0"),
        (Role, ""), (Role, "Example"), (Role, "arn:aws:iam::1:role/x"), (Role, "arn:aws:iam::123456789012:user/x"),
        (ImageSHA384, b""), (ImageSHA384, bytes(32)),
    ],
)  # fmt: skip
def test_names_that_cannot_be_are_mistakes(kind: Callable[[object], Policy], value: object) -> None:
    """They would never match, and whoever wrote them meant something else."""
    with pytest.raises(ValueError, match=r"is no|cannot be"):
        kind(value)


@pytest.mark.parametrize(("kind", "field"), [(UserData, "user_data"), (PublicKey, "public_key")])
def test_what_the_enclave_added_is_pinned_byte_for_byte(kind: Callable[[bytes], Policy], field: str) -> None:
    """Another value, a longer one, none where some is expected and some where none is are all refused; so is debug."""
    for found, expected, accepted in ((b"a", b"a", True), (b"", b"", True), (b"ab", b"a", False), (None, b"", False)):
        for pcrs, debug in ((NORMAL.pcrs, False), (DEBUG.pcrs, True)):
            claims = AttestationDocument("i-1-enc1", 1, pcrs, b"leaf", (b"root",), **{field: found})
            assert accepts(kind(expected), claims) == (accepted and not debug)
            assert accepts(AllOf([kind(expected), UnsafeAcceptDebugMode()]), claims) == accepted
