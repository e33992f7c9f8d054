from __future__ import annotations

import pytest

from alcove.attestation.document import AttestationDocument
from alcove.attestation.policy import (
    PCR,
    AllOf,
    AnyOf,
    GenuineOnly,
    ImageSHA384,
    NoDebugMode,
    Policy,
    UnsafeAcceptDebugMode,
    policy_from_data,
)
from alcove.errors import PolicyError, UsageError

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
        (AnyOf([PCR(0, TWO), UnsafeAcceptDebugMode()]), True, True),
        (AllOf([AnyOf([UnsafeAcceptDebugMode(), PCR(0, ONE)]), PCR(3, TWO)]), True, False),
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
    assert accepts(NoDebugMode(), document({3: ONE}))


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


def test_a_file_describes_a_policy() -> None:
    """Names in any case, a list for a choice, the answer of build-enclave as it is, debug mode on request."""
    assert policy_from_data({"PCR0": ONE.hex(), "pcr1": TWO.hex().upper()}) == AllOf([PCR(0, ONE), PCR(1, TWO)])
    assert policy_from_data({"PCR31": [ONE.hex(), TWO.hex()]}) == AllOf([AnyOf([PCR(31, ONE), PCR(31, TWO)])])
    answer = {"Measurements": {"HashAlgorithm": "Sha384 { ... }", "PCR0": ONE.hex()}}
    assert policy_from_data(answer) == AllOf([PCR(0, ONE)])
    assert policy_from_data({"ImageSha384": ONE.hex()}) == AllOf([PCR(0, ONE)])
    assert accepts(policy_from_data({"PCR0": ZERO.hex()}, allow_debug=True), DEBUG)
    assert not accepts(policy_from_data({"PCR0": ZERO.hex()}), DEBUG)


@pytest.mark.parametrize(
    "raw",
    [
        None, [], "PCR0", {}, {"HashAlgorithm": "x"}, {"PCR32": ONE.hex()}, {"PCR00": ONE.hex()}, {"pcr": ONE.hex()},
        {0: ONE.hex()}, {"PCR0": ""}, {"PCR0": "zz" * 48}, {"PCR0": ONE}, {"PCR0": 0}, {"PCR0": None}, {"PCR0": []},
        {"PCR0": [None]}, {"PCR0": ONE.hex() + "00"}, {"Measurements": {}}, {"Measurements": None},
    ],
)  # fmt: skip
def test_a_file_that_describes_no_policy_is_refused(raw: object) -> None:
    """A misspelt register must not mean "accept all"."""
    with pytest.raises(UsageError):
        policy_from_data(raw)
