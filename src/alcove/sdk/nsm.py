"""The NSM from inside the enclave: ioctl on /dev/nsm (nsm.md §2).

    document = nsm.attest(nonce=nonce)          # of the process's one client, `default()`
    with Nsm() as module:                       # or of one's own
        module.extend_pcr(16, b"configuration")

One lock for the whole process: the device answers one request at a time, and shares it with the kernel's random
generator (sdk.md §9). A call takes about a millisecond; do not make one in an event loop.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

from alcove.devices.nsm import messages
from alcove.devices.nsm.messages import NsmDescribed, PcrDescribed
from alcove.errors import ProtocolError
from alcove.sdk.errors import NotInEnclaveError, NsmError

DEVICE: Final = "/dev/nsm"
IOCTL_RAW: Final = 0xC0200A00  # nsm.md §2: _IOWR(0x0A, 0, struct nsm_raw)
LOCK_SECONDS: Final = 130.0  # the driver gives up on a request after 120 s (nsm.md §2)
_RAW: Final = struct.Struct("=QQQQ")  # struct nsm_raw: request address, length; response address, length
_HINTS: Final = {
    "InvalidIndex": f"registers are 0 to {messages.PCR_COUNT - 1}",
    "ReadOnlyIndex": "the register is locked until the enclave ends; 0 to 15 are from the start",
    "InputTooLarge": f"a request has at most {messages.MAX_REQUEST} bytes, all fields together",
}

_T = TypeVar("_T")


class Channel(Protocol):
    """Carries one request to a module and brings the response back."""

    def exchange(self, request: bytes) -> bytes:
        """Send CBOR, return CBOR; raises NsmError when the module cannot be reached."""

    def close(self) -> None:
        """End; safe to call twice."""


class DeviceChannel:
    """The kernel's device.

    Args:
        path: The device node.

    Raises:
        NotInEnclaveError: There is no such device.
        NsmError: It may not be opened.
    """

    def __init__(self, path: str = DEVICE) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotInEnclaveError(path) from None
        except OSError as error:
            raise NsmError("InternalError", f"{path} cannot be opened: {error.strerror}") from None

    def exchange(self, request: bytes) -> bytes:
        """One ioctl; see `Channel`."""
        # Arrays, since they tell the address of their memory; ctypes would cost more than all the rest to import.
        sent = array.array("B", request)
        received = array.array("B", bytes(messages.MAX_RESPONSE))
        raw = bytearray(_RAW.pack(*sent.buffer_info(), *received.buffer_info()))
        try:
            fcntl.ioctl(self._fd, IOCTL_RAW, raw)
        except OSError as error:
            reason = "InputTooLarge" if error.errno == errno.EMSGSIZE else "InternalError"
            raise NsmError(reason, f"the NSM cannot be asked: {error.strerror}") from None
        *_, length = _RAW.unpack(raw)
        return received[: min(length, len(received))].tobytes()

    def close(self) -> None:
        """Close the device."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Process:
    """What a process has one of: the lock of its requests, and the client of `default()` with its own."""

    def __init__(self) -> None:
        self.client: Nsm | None = None
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        """Fresh locks: a child after a fork lacks the thread that may hold one."""
        self.request_lock = threading.Lock()
        self.client_lock = threading.Lock()


_process: Final = _Process()


class Nsm:
    """The module's commands; threads may share one client.

    Args:
        channel: Where requests go; the kernel's device when None.

    Every method raises NsmError when the module refuses or cannot be reached.
    """

    def __init__(self, channel: Channel | None = None) -> None:
        self._channel = DeviceChannel() if channel is None else channel

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the device."""
        self._channel.close()

    def attestation(
        self, *, user_data: bytes | None = None, nonce: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """A fresh attestation document (COSE_Sign1) over these fields.

        Args:
            user_data: Up to 1024 bytes of the application's choice.
            nonce: Up to 1024 bytes from whoever will check the document.
            public_key: Up to 1024 bytes; for KMS a DER SubjectPublicKeyInfo.
        """
        request = messages.Attestation(user_data=user_data, nonce=nonce, public_key=public_key)
        return self._ask(request, messages.Attested).document

    def get_random(self) -> bytes:
        """Random bytes from the module: 256 from every known one."""
        return self._ask(messages.GetRandom(), messages.RandomBytes).random

    def describe_nsm(self) -> NsmDescribed:
        """What the module is: version, id, number of registers, those that are locked."""
        return self._ask(messages.DescribeNSM(), NsmDescribed)

    def describe_pcr(self, index: int) -> PcrDescribed:
        """A register's value (48 bytes) and whether it is locked."""
        return self._ask(messages.DescribePCR(index), PcrDescribed)

    def extend_pcr(self, index: int, data: bytes) -> bytes:
        """Extend a register (16–31 are the application's) and return its new value.

        Only locked registers appear in documents: lock it when its value is final (nsm.md §6).
        """
        return self._ask(messages.ExtendPCR(index, data), messages.PcrExtended).data

    def lock_pcr(self, index: int) -> None:
        """Lock a register until the enclave ends."""
        self._ask(messages.LockPCR(index), messages.PcrLocked)

    def lock_pcrs(self, count: int) -> None:
        """Lock the registers 0 to `count` - 1 until the enclave ends."""
        self._ask(messages.LockPCRs(count), messages.PcrsLocked)

    def _ask(self, request: messages.Request, expected: type[_T]) -> _T:
        encoded = messages.encode_request(request)
        if len(encoded) > messages.MAX_REQUEST:
            raise _refusal("InputTooLarge")
        lock = _process.request_lock
        if not lock.acquire(timeout=LOCK_SECONDS):
            raise NsmError("InternalError", "the NSM is busy with another thread's request")
        try:
            answer = self._channel.exchange(encoded)
        finally:
            lock.release()
        try:
            response = messages.decode_response(answer)
        except ProtocolError as error:
            raise NsmError("InvalidResponse", str(error)) from None
        if isinstance(response, messages.Failed):
            raise _refusal(response.error.value)
        if not isinstance(response, expected):
            raise NsmError("InvalidResponse", "the NSM answers another question")
        return response


def _refusal(reason: str) -> NsmError:
    return NsmError(reason, hint=_HINTS.get(reason))


def default() -> Nsm:
    """The process's client of the enclave's module; opened on the first call, and never closed.

    Raises:
        NotInEnclaveError: There is no device.
    """
    with _process.client_lock:
        if _process.client is None:
            _process.client = Nsm()
        return _process.client


@contextlib.contextmanager
def using(channel: Channel) -> Iterator[Nsm]:
    """Let `default()`, and so everything in this SDK, ask another module; for tests (`alcove.testing`)."""
    with _process.client_lock:
        before, _process.client = _process.client, Nsm(channel)
        client = _process.client
    try:
        yield client
    finally:
        with _process.client_lock:
            _process.client = before


def attest(*, user_data: bytes | None = None, nonce: bytes | None = None, public_key: bytes | None = None) -> bytes:
    """A fresh document of this enclave's, as `Nsm.attestation` makes it."""
    return default().attestation(user_data=user_data, nonce=nonce, public_key=public_key)
