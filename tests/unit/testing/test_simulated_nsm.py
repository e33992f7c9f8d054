from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from alcove.attestation import PCR, AllOf, PolicyError, Root, UnsafeAcceptDebugMode, verify
from alcove.errors import AttestationError
from alcove.sdk import nsm as sdk
from alcove.sdk.errors import NotInEnclaveError, NsmError
from alcove.testing import SimulatedNSM


def test_its_documents_verify_under_its_root_and_no_other(alcove_nsm: SimulatedNSM) -> None:
    """The production verifier accepts them with the simulated root, and with AWS's or another's does not."""
    document = sdk.attest(user_data=b"u", nonce=b"n", public_key=b"k")
    now = datetime.now(UTC)
    verified = verify(document, roots=[alcove_nsm.root], policy=PCR(0, alcove_nsm.pcr(0)), at=now, nonce=b"n")
    assert (verified.document.user_data, verified.document.public_key) == (b"u", b"k")
    assert verified.document.module_id == alcove_nsm.enclave_id
    for stranger in (Root.AWS, SimulatedNSM().root):
        with pytest.raises(AttestationError):
            verify(document, roots=[stranger], policy=PCR(0, alcove_nsm.pcr(0)), at=now, nonce=b"n")


def test_registers_can_be_set_as_an_image_would(alcove_nsm: SimulatedNSM) -> None:
    """By number, by name, in bytes, in hex, and as build-enclave prints them; another image is refused."""
    wanted = bytes(range(48))
    for pcrs in ({0: wanted}, {"PCR0": wanted.hex()}, {"HashAlgorithm": "Sha384 { ... }", "PCR0": wanted.hex()}):
        alcove_nsm.boot(pcrs)
        assert alcove_nsm.pcr(0) == wanted
        assert alcove_nsm.pcr(1) != bytes(48)
        assert alcove_nsm.pcr(3) == bytes(48)
    document, at = sdk.attest(), datetime.now(UTC)
    verify(document, roots=[alcove_nsm.root], policy=PCR(0, wanted), at=at)
    with pytest.raises(PolicyError):
        verify(document, roots=[alcove_nsm.root], policy=PCR(0, bytes([1]) * 48), at=at)


@pytest.mark.parametrize("bad", [{16: bytes(48)}, {"PCRx": bytes(48)}, {-1: bytes(48)}, {0: b"short"}, {"PCR0": "zz"}])
def test_what_is_no_register_is_refused(bad: dict[int, bytes]) -> None:
    """Only the registers that are measured at boot can be set, to 48 bytes."""
    with pytest.raises(ValueError):
        SimulatedNSM(bad)


def test_registers_extend_and_lock_as_in_an_enclave(alcove_nsm: SimulatedNSM) -> None:
    """The rules of the real module: 0 to 15 are locked, and a document has locked registers only."""
    module = sdk.default()
    value = module.extend_pcr(16, b"configuration")
    assert value == hashlib.sha384(bytes(48) + b"configuration").digest()
    module.lock_pcr(16)
    for change in (lambda: module.extend_pcr(16, b"more"), lambda: module.extend_pcr(0, b"other")):
        with pytest.raises(NsmError) as caught:
            change()
        assert caught.value.reason == "ReadOnlyIndex"
        assert "locked" in str(caught.value.hint)
    policy = AllOf([PCR(16, value), PCR(0, alcove_nsm.pcr(0))])
    verify(sdk.attest(), roots=[alcove_nsm.root], policy=policy, at=datetime.now(UTC))
    alcove_nsm.boot()
    assert alcove_nsm.pcr(16) == bytes(48)


def test_debug_mode_hides_the_image(alcove_nsm: SimulatedNSM) -> None:
    """PCR0, 1, 2 and 8 are zero and a policy refuses that; PCR4 keeps its value."""
    alcove_nsm.boot(debug=True)
    assert [alcove_nsm.pcr(index) for index in (0, 1, 2, 8)] == [bytes(48)] * 4
    assert alcove_nsm.pcr(4) != bytes(48)
    now = datetime.now(UTC)
    zero = AllOf([UnsafeAcceptDebugMode(), PCR(4, alcove_nsm.pcr(4))])
    verify(sdk.attest(), roots=[alcove_nsm.root], policy=zero, at=now)
    with pytest.raises(PolicyError):
        verify(sdk.attest(), roots=[alcove_nsm.root], policy=PCR(4, alcove_nsm.pcr(4)), at=now)


def test_two_enclaves_of_one_machine_share_a_root() -> None:
    """A module made with another's parent has its root, and an id of its own."""
    one = SimulatedNSM()
    two = SimulatedNSM(parent=one.parent)
    assert (one.root, one.enclave_id != two.enclave_id) == (two.root, True)
    with two:
        verify(sdk.attest(), roots=[one.root], policy=PCR(0, two.pcr(0)), at=datetime.now(UTC))


def test_the_clock_can_be_set() -> None:
    """A document is as old as the module's clock says, so that expiry can be tested."""
    past = datetime.now(UTC) - timedelta(hours=2)
    with SimulatedNSM(clock=lambda: past) as nsm:
        document = sdk.attest()
    policy = PCR(0, nsm.pcr(0))
    verify(document, roots=[nsm.root], policy=policy, at=past)
    with pytest.raises(AttestationError):
        verify(document, roots=[nsm.root], policy=policy, at=past + timedelta(days=1))


def test_outside_of_the_block_there_is_no_enclave() -> None:
    """Nothing is simulated without being asked for, and the error says what to use."""
    with SimulatedNSM():
        sdk.attest()
    with pytest.raises(NotInEnclaveError, match="not in an enclave") as caught:
        sdk.attest()
    assert "alcove.testing.SimulatedNSM" in str(caught.value.hint)
