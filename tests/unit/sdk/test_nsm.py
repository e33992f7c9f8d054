from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from alcove.codec import cbor
from alcove.sdk import clock, entropy, nsm
from alcove.sdk.errors import EntropyError, NotInEnclaveError, NsmError
from alcove.sdk.nsm import DeviceChannel, Nsm


class Scripted:
    """A module that answers one question with what it is told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer if isinstance(answer, bytes) else cbor.encode(answer)
        self.asked = b""

    def exchange(self, request: bytes) -> bytes:
        """Remember and answer."""
        self.asked = request
        return self.answer

    def close(self) -> None:
        """Nothing to close."""


def test_requests_are_the_bytes_of_the_specification() -> None:
    """nsm.md §3 gives the bytes, §4 the answers' shapes."""
    channel = Scripted({"Attestation": {"document": b"doc"}})
    assert Nsm(channel).attestation(user_data=b"ud", nonce=b"nn", public_key=b"pk") == b"doc"
    assert channel.asked.hex() == (
        "a16b4174746573746174696f6ea369757365725f64617461427564656e6f6e6365426e6e6a7075626c69635f6b657942706b"
    )
    channel = Scripted({"GetRandom": {"random": bytes(256)}})
    assert Nsm(channel).get_random() == bytes(256)
    assert channel.asked.hex() == "6947657452616e646f6d"
    channel = Scripted({"DescribePCR": {"lock": True, "data": bytes(48)}})
    assert Nsm(channel).describe_pcr(31).lock is True
    channel = Scripted({"ExtendPCR": {"data": b"\x01" * 48}})
    assert Nsm(channel).extend_pcr(16, b"\x01\x02\x03") == b"\x01" * 48
    assert channel.asked.hex() == "a169457874656e64504352a265696e64657810646461746143010203"
    channel = Scripted("LockPCR")
    Nsm(channel).lock_pcr(16)
    assert channel.asked.hex() == "a1674c6f636b504352a165696e64657810"
    channel = Scripted("LockPCRs")
    Nsm(channel).lock_pcrs(32)
    assert channel.asked.hex() == "a1684c6f636b50435273a16572616e67651820"


@pytest.mark.parametrize("name", ["InvalidIndex", "ReadOnlyIndex", "InternalError"])
def test_a_refusal_carries_its_name(name: str) -> None:
    """The module's own error name is the error's reason."""
    with pytest.raises(NsmError) as caught:
        Nsm(Scripted({"Error": name})).lock_pcr(0)
    assert caught.value.reason == name


@pytest.mark.parametrize("answer", ["LockPCR", b"\xff", {"GetRandom": {}}, {"Error": "NoSuchName"}, b""])
def test_an_answer_that_does_not_fit_is_an_error(answer: Any) -> None:
    """An answer to another question, or no CBOR, is InvalidResponse."""
    with pytest.raises(NsmError) as caught:
        Nsm(Scripted(answer)).get_random()
    assert caught.value.reason == "InvalidResponse"


def test_a_request_that_is_too_long_is_not_sent() -> None:
    """More than 0x1000 bytes is InputTooLarge without a call (nsm.md §2)."""
    channel = Scripted("LockPCR")
    with pytest.raises(NsmError) as caught:
        Nsm(channel).attestation(user_data=bytes(0x1000))
    assert caught.value.reason == "InputTooLarge"
    assert channel.asked == b""


def test_the_ioctl_passes_two_buffers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Struct nsm_raw holds address and length of both buffers; the answer's length comes back in it (nsm.md §2)."""
    seen = []

    def ioctl(fd: int, command: int, raw: bytearray) -> int:
        address, length, answer_address, room = struct.unpack("=QQQQ", raw)
        seen.append((command, ctypes.string_at(address, length), room))
        ctypes.memmove(answer_address, b"answer", 6)
        raw[24:] = struct.pack("=Q", 6)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    (tmp_path / "nsm").touch()
    channel = DeviceChannel(str(tmp_path / "nsm"))
    assert channel.exchange(b"question") == b"answer"
    assert seen == [(0xC0200A00, b"question", 0x3000)]
    channel.close()
    channel.close()


@pytest.mark.parametrize(("number", "reason"), [(errno.EMSGSIZE, "InputTooLarge"), (errno.EIO, "InternalError")])
def test_errno_becomes_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, reason: str) -> None:
    """As AWS's library maps them (nsm.md §2)."""

    def ioctl(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    (tmp_path / "nsm").touch()
    with Nsm(DeviceChannel(str(tmp_path / "nsm"))) as nsm, pytest.raises(NsmError) as caught:
        nsm.get_random()
    assert caught.value.reason == reason


def test_a_machine_without_the_device_is_told_so() -> None:
    """The error says where we are not and what a test uses; nothing is simulated."""
    with pytest.raises(NotInEnclaveError, match="not in an enclave: there is no /nonexistent/nsm") as caught:
        DeviceChannel("/nonexistent/nsm")
    assert "alcove.testing" in str(caught.value.hint)


def test_a_device_that_may_not_be_opened_is_another_error(tmp_path: Path) -> None:
    """What is there and cannot be used is not called missing."""
    (tmp_path / "nsm").mkdir()
    with pytest.raises(NsmError, match="cannot be opened") as caught:
        DeviceChannel(str(tmp_path / "nsm"))
    assert not isinstance(caught.value, NotInEnclaveError)


class Busy(Scripted):
    """Counts the requests that are being asked at once."""

    inside = most = 0

    def exchange(self, request: bytes) -> bytes:
        """Tell how many are inside."""
        Busy.inside += 1
        Busy.most = max(Busy.most, Busy.inside)
        os.sched_yield()
        Busy.inside -= 1
        return super().exchange(request)


def test_the_process_asks_one_thing_at_a_time() -> None:
    """Clients of the same process share a lock, each with its own channel or not (sdk.md §9)."""
    clients = [Nsm(Busy({"GetRandom": {"random": bytes(256)}})) for _ in range(4)]
    threads = [threading.Thread(target=lambda c=c: [c.get_random() for _ in range(200)]) for c in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Busy.most == 1


def test_a_child_does_not_inherit_a_held_lock() -> None:
    """A fork while another thread asks leaves the child able to ask."""
    held, release = threading.Event(), threading.Event()

    class Slow(Scripted):
        def exchange(self, request: bytes) -> bytes:
            held.set()
            release.wait(60)
            return super().exchange(request)

    answer = {"GetRandom": {"random": bytes(256)}}
    thread = threading.Thread(target=Nsm(Slow(answer)).get_random)
    thread.start()
    assert held.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(0 if len(Nsm(Scripted(answer)).get_random()) == 256 else 1)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_process_has_one_module() -> None:
    """`attest` asks the client of `default()`, which a test can put another module behind."""
    channel = Scripted({"Attestation": {"document": b"doc"}})
    with nsm.using(channel) as client:
        assert nsm.default() is client
        assert nsm.attest(user_data=b"ud", nonce=b"nn", public_key=b"pk") == b"doc"
        assert channel.asked.endswith(bytes.fromhex("6a7075626c69635f6b657942706b"))
        with nsm.using(Scripted("LockPCR")) as inner:
            assert nsm.default() is inner
        assert nsm.default() is client
    with pytest.raises(NotInEnclaveError):
        nsm.default()


@pytest.mark.parametrize("name", ["InvalidIndex", "ReadOnlyIndex", "InputTooLarge"])
def test_what_the_caller_can_mend_has_a_hint(name: str) -> None:
    """The module's bare names say little; the error says what to do."""
    with pytest.raises(NsmError, match=name) as caught:
        Nsm(Scripted({"Error": name})).lock_pcr(40)
    assert caught.value.hint


def test_seeding_adds_and_credits_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """RNDADDENTROPY with bits, bytes and data, until enough is in (sdk.md §7)."""
    calls: list[tuple[int, bytes]] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, command, data: calls.append((command, data)))
    entropy.seed(Nsm(Scripted({"GetRandom": {"random": b"\x07" * 256}})), size=300)
    assert calls == [(0x40085203, struct.pack("=ii", 2048, 256) + b"\x07" * 256)] * 2


def test_no_randomness_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty answer, a failing call and an unseeded kernel are errors, never passed over."""
    empty = Nsm(Scripted({"GetRandom": {"random": b""}}))
    with pytest.raises(EntropyError):
        entropy.seed(empty)
    full = Nsm(Scripted({"GetRandom": {"random": bytes(256)}}))

    def failing(*_: object) -> int:
        raise OSError(errno.EINVAL, "bad")

    monkeypatch.setattr(fcntl, "ioctl", failing)
    with pytest.raises(EntropyError):
        entropy.seed(full)

    def unseeded(*_: object) -> bytes:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "ioctl", lambda *_: 0)
    monkeypatch.setattr(os, "getrandom", unseeded)
    with pytest.raises(EntropyError):
        entropy.seed(full)


def document(payload: Any, *, tagged: bool = False) -> bytes:
    parts = [b"", {}, cbor.encode(payload), b""]
    return cbor.encode(cbor.Tag(18, parts) if tagged else parts)


@pytest.mark.parametrize("tagged", [False, True])
def test_a_document_has_the_time(tagged: bool) -> None:
    """Milliseconds become seconds, with and without the COSE tag."""
    assert clock.document_time(document({"timestamp": 1_700_000_000_500}, tagged=tagged)) == 1_700_000_000.5


@pytest.mark.parametrize("bad", [b"", b"\x80", document({}), document([]), document({"timestamp": "x"})])
def test_a_document_without_time_is_refused(bad: bytes) -> None:
    """Then there is no reference, and that is an error."""
    with pytest.raises(NsmError):
        clock.document_time(bad)


@pytest.mark.parametrize(("off", "steps"), [(5.0, 0), (-5.0, 0), (3600.0, 1), (-3600.0, 1)])
def test_only_a_wrong_clock_is_set(monkeypatch: pytest.MonkeyPatch, off: float, steps: int) -> None:
    """Small differences are left alone, large ones are corrected and reported (sdk.md §8)."""
    calls: list[float] = []
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    monkeypatch.setattr("time.clock_settime", lambda which, value: calls.append(value))
    made = document({"timestamp": int((1_700_000_000 + off) * 1000)})
    assert clock.correct(Nsm(Scripted({"Attestation": {"document": made}}))) == off
    assert calls == [1_700_000_000 + off] * steps
