"""The module's registers, locks and errors (nsm.md §5, §6)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.devices.nsm import messages as nsm
from alcove.devices.nsm.messages import ErrorCode, Failed
from alcove.devices.nsm.module import NsmModule

EXTENDED_16 = bytes.fromhex(  # nsm.md §6: register 16 at zero, extended with 01 02 03
    "cb178fcd3f328244c05c6248723fd068b3a1dda878e1ab8be911098f199958add55d0c27f04826d27b44d949a650694e"
)


class Signer:
    """Remembers what it was asked to sign."""

    def __init__(self) -> None:
        self.asked: list[tuple[Mapping[int, bytes], Any, Any, Any]] = []
        self.document = b"signed"
        self.fails = False

    def __call__(self, pcrs: Mapping[int, bytes], user_data: Any, nonce: Any, public_key: Any) -> bytes:
        """Sign, in a way."""
        if self.fails:
            raise OSError("no key")
        self.asked.append((pcrs, user_data, nonce, public_key))
        return self.document


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def module(signer: Signer) -> NsmModule:
    return NsmModule("i-1-enc2", {0: b"\1" * 48, 4: b"\4" * 48}, signer, lambda count: b"r" * count)


def ask(module: NsmModule, request: nsm.Request) -> nsm.Response:
    return nsm.decode_response(module.handle(nsm.encode_request(request)))


def test_registers_start_with_the_measurements_and_0_to_15_locked(module: NsmModule) -> None:
    """The first sixteen are locked, the others open, and what was not measured is zero."""
    assert ask(module, nsm.DescribePCR(0)) == nsm.PcrDescribed(lock=True, data=b"\1" * 48)
    assert ask(module, nsm.DescribePCR(15)) == nsm.PcrDescribed(lock=True, data=bytes(48))
    assert ask(module, nsm.DescribePCR(16)) == nsm.PcrDescribed(lock=False, data=bytes(48))
    assert ask(module, nsm.DescribeNSM()) == nsm.NsmDescribed(1, 0, 0, "i-1-enc2", 32, tuple(range(16)), "SHA384")


def test_extending_hashes_the_old_value_and_the_data(module: NsmModule) -> None:
    """Register 16 extended by 01 02 03 has the documented value; a second extension builds on it."""
    assert ask(module, nsm.ExtendPCR(16, b"\1\2\3")) == nsm.PcrExtended(EXTENDED_16)
    again = hashlib.sha384(EXTENDED_16).digest()
    assert ask(module, nsm.ExtendPCR(16, b"")) == nsm.PcrExtended(again)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (nsm.DescribePCR(32), ErrorCode.INVALID_INDEX),
        (nsm.DescribePCR(70000), ErrorCode.INVALID_INDEX),
        (nsm.ExtendPCR(32, b""), ErrorCode.INVALID_INDEX),
        (nsm.LockPCR(32), ErrorCode.INVALID_INDEX),
        (nsm.LockPCRs(33), ErrorCode.INVALID_INDEX),
        (nsm.ExtendPCR(15, b"x"), ErrorCode.READ_ONLY_INDEX),
        (nsm.LockPCR(0), ErrorCode.READ_ONLY_INDEX),
    ],
)
def test_misuse_gives_the_documented_error(module: NsmModule, request_: nsm.Request, error: ErrorCode) -> None:
    """The table of nsm.md §5."""
    assert ask(module, request_) == Failed(error)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x6bDescribeNSM\x00", b"\xa1\x67LockPCR\xa0"])
def test_what_is_no_request_is_an_invalid_operation(module: NsmModule, data: bytes) -> None:
    """Nothing, no CBOR, bytes after the value and missing keys are InvalidOperation."""
    assert module.handle(data).hex() == "a1654572726f7270496e76616c69644f7065726174696f6e"


def test_a_request_over_the_limit_is_too_large(module: NsmModule) -> None:
    """0x1000 bytes are read, one more is InputTooLarge."""
    assert nsm.decode_response(module.handle(bytes(0x1001))) == Failed(ErrorCode.INPUT_TOO_LARGE)
    assert nsm.decode_response(module.handle(bytes(0x1000))) == Failed(ErrorCode.INVALID_OPERATION)


def test_a_lock_is_for_good(module: NsmModule) -> None:
    """A locked register keeps its value; locking it again fails; locking ranges over it succeeds."""
    assert ask(module, nsm.LockPCR(16)) == nsm.PcrLocked()
    assert ask(module, nsm.ExtendPCR(16, b"x")) == Failed(ErrorCode.READ_ONLY_INDEX)
    assert ask(module, nsm.LockPCR(16)) == Failed(ErrorCode.READ_ONLY_INDEX)
    assert ask(module, nsm.LockPCRs(0)) == nsm.PcrsLocked()
    assert ask(module, nsm.DescribePCR(17)) == nsm.PcrDescribed(lock=False, data=bytes(48))
    assert ask(module, nsm.LockPCRs(32)) == nsm.PcrsLocked()
    assert ask(module, nsm.LockPCRs(32)) == nsm.PcrsLocked()
    assert ask(module, nsm.LockPCR(31)) == Failed(ErrorCode.READ_ONLY_INDEX)


def test_documents_hold_locked_registers_only(module: NsmModule, signer: Signer) -> None:
    """An extended register appears in documents once it is locked."""
    ask(module, nsm.ExtendPCR(16, b"\1\2\3"))
    assert ask(module, nsm.Attestation(b"u", b"n", b"p")) == nsm.Attested(b"signed")
    ask(module, nsm.LockPCR(16))
    ask(module, nsm.Attestation())
    (first, *fields), (second, *_) = signer.asked
    assert sorted(first) == list(range(16))
    assert fields == [b"u", b"n", b"p"]
    assert second[16] == EXTENDED_16
    assert sorted(second) == list(range(17))


def test_a_document_that_does_not_fit_is_too_large(module: NsmModule, signer: Signer) -> None:
    """A response over 0x3000 bytes is InputTooLarge, as on QEMU's device."""
    signer.document = bytes(0x3000)
    assert ask(module, nsm.Attestation()) == Failed(ErrorCode.INPUT_TOO_LARGE)


def test_a_failure_while_signing_is_an_internal_error(module: NsmModule, signer: Signer) -> None:
    """Whatever signing raises, the guest gets an answer."""
    signer.fails = True
    assert ask(module, nsm.Attestation()) == Failed(ErrorCode.INTERNAL_ERROR)


def test_random_bytes_suit_the_kernel_generator(module: NsmModule) -> None:
    """The answer begins with the 19 bytes that Linux compares, and has 256 random bytes (nsm.md §2.2)."""
    answer = module.handle(bytes.fromhex("6947657452616e646f6d"))
    assert answer[:22].hex() == "a16947657452616e646f6da16672616e646f6d590100"
    assert len(answer) == 278


@given(st.binary(max_size=80))
def test_every_request_has_an_answer(data: bytes) -> None:
    """No bytes make the module raise, and every answer decodes."""
    module = NsmModule("i-1-enc2", {}, lambda *_: b"", bytes)
    nsm.decode_response(module.handle(data))
