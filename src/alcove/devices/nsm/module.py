"""The module behind /dev/nsm: registers, locks and the seven requests (nsm.md §3-§6).

Core: a request's bytes in, a response's bytes out; randomness and signing are passed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Final

from alcove.devices.nsm import messages as nsm
from alcove.devices.nsm.messages import ErrorCode, Failed
from alcove.errors import ProtocolError
from alcove.types import ZERO_PCR

FIRST_APPLICATION_PCR: Final = 16  # nsm.md §6: 0-15 are locked at boot
RANDOM_BYTES: Final = 256  # nsm.md §2.2; fewer than 24 would confuse the kernel
VERSION: Final = (1, 0, 0)  # nsm.md §4: AWS's own is not known

Attest = Callable[[Mapping[int, bytes], bytes | None, bytes | None, bytes | None], bytes]
"""(locked registers, user_data, nonce, public_key) → attestation document."""


class NsmModule:
    """One enclave's module; its state lives as long as the machine.

    Args:
        module_id: `i-…-enc…`, at most 99 characters.
        pcrs: The measured registers, 48 bytes each; the others start at zero.
        attest: Signs a document.
        random: Returns so many random bytes.
    """

    def __init__(
        self, module_id: str, pcrs: Mapping[int, bytes], attest: Attest, random: Callable[[int], bytes]
    ) -> None:
        if any(not 0 <= i < nsm.PCR_COUNT or len(value) != len(ZERO_PCR) for i, value in pcrs.items()):
            raise ValueError("registers are 0 to 31, of 48 bytes")
        self._module_id = module_id
        self._pcrs = [bytes(pcrs.get(index, ZERO_PCR)) for index in range(nsm.PCR_COUNT)]
        self._locked = [index < FIRST_APPLICATION_PCR for index in range(nsm.PCR_COUNT)]
        self._attest = attest
        self._random = random
        self.requests = 0  # answered so far

    def handle(self, request: bytes) -> bytes:
        """Answer one request. Every request has an answer; nothing is raised."""
        self.requests += 1
        if len(request) > nsm.MAX_REQUEST:
            return nsm.encode_response(Failed(ErrorCode.INPUT_TOO_LARGE))
        try:
            message = nsm.decode_request(request)
        except ProtocolError:
            return nsm.encode_response(Failed(ErrorCode.INVALID_OPERATION))
        response = nsm.encode_response(self._answer(message))
        if len(response) > nsm.MAX_RESPONSE:  # only a document can be that large
            return nsm.encode_response(Failed(ErrorCode.INPUT_TOO_LARGE))
        return response

    def _answer(self, request: nsm.Request) -> nsm.Response:
        match request:
            case nsm.GetRandom():
                return nsm.RandomBytes(self._random(RANDOM_BYTES))
            case nsm.Attestation():
                return self._attestation(request)
            case nsm.DescribeNSM():
                return self._describe()
            case nsm.LockPCRs(count):
                return self._lock_range(count)
        if request.index >= nsm.PCR_COUNT:
            return Failed(ErrorCode.INVALID_INDEX)
        match request:
            case nsm.DescribePCR(index):
                return nsm.PcrDescribed(self._locked[index], self._pcrs[index])
            case nsm.ExtendPCR(index, data):
                return self._extend(index, data)
            case nsm.LockPCR(index):
                return self._lock(index)

    def _extend(self, index: int, data: bytes) -> nsm.Response:
        if self._locked[index]:
            return Failed(ErrorCode.READ_ONLY_INDEX)
        self._pcrs[index] = hashlib.sha384(self._pcrs[index] + data).digest()
        return nsm.PcrExtended(self._pcrs[index])

    def _lock(self, index: int) -> nsm.Response:
        if self._locked[index]:
            return Failed(ErrorCode.READ_ONLY_INDEX)
        self._locked[index] = True
        return nsm.PcrLocked()

    def _lock_range(self, count: int) -> nsm.Response:
        if count > nsm.PCR_COUNT:
            return Failed(ErrorCode.INVALID_INDEX)
        self._locked[:count] = [True] * count
        return nsm.PcrsLocked()

    def _describe(self) -> nsm.Response:
        locked = tuple(index for index, is_locked in enumerate(self._locked) if is_locked)
        return nsm.NsmDescribed(*VERSION, self._module_id, nsm.PCR_COUNT, locked, "SHA384")

    def _attestation(self, request: nsm.Attestation) -> nsm.Response:
        locked = {index: value for index, value in enumerate(self._pcrs) if self._locked[index]}
        try:
            document = self._attest(locked, request.user_data, request.nonce, request.public_key)
        except Exception:  # noqa: BLE001 - nsm.md §5: a failure while signing is InternalError, whatever it was
            return Failed(ErrorCode.INTERNAL_ERROR)
        return nsm.Attested(document)
