"""The HTTP face of the service: which request is for whom, and no answer before its record is durable (kms.md §1, §24).

The records of all requests that came in one turn of the event loop are made durable together, then their answers leave:
one wait for the disk serves them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from alcove.kms.call import Answer, Peer
from alcove.kms.claim import SignedRequest
from alcove.kms.connection import Respond
from alcove.kms.errors import KmsError
from alcove.kms.material import KeyPending, make_pair
from alcove.kms.service import Service
from alcove.kms.sts import Sts, is_sts

MAX_MAKERS: Final = 2  # RSA keys that are being made at once
_METHODS: Final = ("POST", "GET")
_HEALTHY: Final = Answer(200, b'{"status":"healthy"}', "", "application/json")


class KmsFace:
    """Answers the requests of one process.

    Args:
        service: The KMS.
        sts: STS beside it.
        commit: Makes the records of all answers so far durable; raises OSError when it cannot.
    """

    def __init__(self, service: Service, sts: Sts, commit: Callable[[], None]) -> None:
        self._service = service
        self._sts = sts
        self._commit = commit
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Respond, Answer]] = []
        self._makers = asyncio.Semaphore(MAX_MAKERS)
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, request: SignedRequest, peer: Peer, respond: Respond) -> None:
        """Has `respond` called with the answer to a request, in a later turn of the event loop."""
        if request.method == "GET" and request.path == "/ping":
            self._answer(respond, _HEALTHY)
        elif request.path == "/" and request.method in _METHODS and is_sts(request):  # GET: a presigned request
            self._answer(respond, self._sts.handle(request, peer))
        elif request.path == "/" and request.method == "POST":
            self._serve(request, peer, respond)
        else:
            error = KmsError("UnknownOperationException", "requests are made with POST /")
            self._answer(respond, Answer(error.status, error.body(), ""))

    def _serve(self, request: SignedRequest, peer: Peer, respond: Respond) -> None:
        try:
            answer = self._service.handle(request, peer)
        except KeyPending as pending:
            task = asyncio.create_task(self._make(pending.spec, request, peer, respond))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._answer(respond, answer)

    async def _make(self, spec: str, request: SignedRequest, peer: Peer, respond: Respond) -> None:
        async with self._makers:
            made = await asyncio.to_thread(make_pair, spec)
        self._answer(respond, self._service.handle(request, peer, made))

    def _answer(self, respond: Respond, answer: Answer) -> None:
        if not self._waiting:
            self._loop.call_soon(self.release)
        self._waiting.append((respond, answer))

    def release(self) -> None:
        """Makes the records of the answers that wait durable, and lets them go; without a record, as faults."""
        waiting, self._waiting = self._waiting, []
        try:
            self._commit()
        except OSError:
            fault = KmsError("KMSInternalException", "The call could not be recorded.")
            waiting = [(respond, Answer(fault.status, fault.body(), answer.request_id)) for respond, answer in waiting]
        for respond, answer in waiting:
            respond(answer)
