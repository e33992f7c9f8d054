"""The HTTP face of the service: which request is for whom, and no answer before its record is durable (kms.md §1, §24).

The records of requests that come in one turn of the event loop after another are made durable together, then their
answers leave: one wait for the disk serves them all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from alcove.kms.call import Answer, Peer
from alcove.kms.claim import SignedRequest
from alcove.kms.connection import Respond
from alcove.kms.errors import KmsError
from alcove.kms.log import Log, place_of, silent
from alcove.kms.material import KeyPending, make_pair
from alcove.kms.metrics import CONTENT_TYPE, OTHER, Metrics, outcome_of
from alcove.kms.service import Service
from alcove.kms.sts import Sts, is_sts

MAX_TOGETHER: Final = 32  # answers for which one does not wait for more; they then wait for the disk
MAX_MAKERS: Final = 2  # RSA keys that are being made at once
_METHODS: Final = ("POST", "GET")
STS: Final = "sts"  # as an operation that is counted
_PAGES: Final = frozenset({"/ping", "/health", "/metrics"})  # for anyone; there is nothing in them of keys or callers
_HEALTHY: Final = Answer(200, b'{"status":"healthy"}', "", "application/json")
_UNHEALTHY: Final = Answer(503, b'{"status":"unhealthy"}', "", "application/json")


@dataclass(frozen=True, slots=True)
class Watch:
    """What operators are shown.

    Attributes:
        metrics: Of all workers.
        count: Counts an answer of this one: operation, outcome, seconds.
        healthy: Whether requests can be served now.
        log: Told of faults.
    """

    metrics: Metrics
    count: Callable[[str, int, float], None]
    healthy: Callable[[], bool]
    log: Log = silent


class KmsFace:
    """Answers the requests of one process.

    Args:
        service: The KMS.
        sts: STS beside it.
        commit: Makes the records of all answers so far durable; raises OSError when it cannot.
        watch: What operators are shown.
    """

    def __init__(self, service: Service, sts: Sts, commit: Callable[[], None], watch: Watch) -> None:
        self._service = service
        self._sts = sts
        self._commit = commit
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Respond, Answer, str, float]] = []  # with operation, and when it began
        self._seen = 0  # of them a turn ago
        self._makers = asyncio.Semaphore(MAX_MAKERS)
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, request: SignedRequest, peer: Peer, respond: Respond) -> None:
        """Has `respond` called with the answer to a request, in a later turn of the event loop."""
        began = time.perf_counter()
        if request.method == "GET" and request.path in _PAGES:
            self._loop.call_soon(respond, self._page(request.path))  # not at once: hundreds may be in one packet
        elif request.path == "/" and request.method in _METHODS and is_sts(request):  # GET: a presigned request
            self._answer(respond, self._sts.handle(request, peer), STS, began)
        elif request.path == "/" and request.method == "POST":
            self._serve(request, peer, respond, began)
        else:
            error = KmsError("UnknownOperationException", "requests are made with POST /")
            self._answer(respond, Answer(error.status, error.body(), "", kind=error.kind), OTHER, began)

    def _page(self, path: str) -> Answer:
        if path == "/metrics":
            return Answer(200, self._watch.metrics.exposition(), "", CONTENT_TYPE)
        return _HEALTHY if path == "/ping" or self._watch.healthy() else _UNHEALTHY

    def _serve(self, request: SignedRequest, peer: Peer, respond: Respond, began: float) -> None:
        operation = (request.value("x-amz-target") or "").rpartition(".")[2]
        try:
            answer = self._service.handle(request, peer)
        except KeyPending as pending:
            task = asyncio.create_task(self._make(pending.spec, request, peer, respond, began))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._answer(respond, answer, operation, began)

    async def _make(self, spec: str, request: SignedRequest, peer: Peer, respond: Respond, began: float) -> None:
        operation = (request.value("x-amz-target") or "").rpartition(".")[2]
        try:
            async with self._makers:
                made = await asyncio.to_thread(make_pair, spec)
            answer = self._service.handle(request, peer, made)
        except Exception as error:  # noqa: BLE001 - the client would wait for ever
            self._watch.log("fault", operation=operation[:128], error=place_of(error))
            fault = KmsError("KMSInternalException", "The request could not be served.")
            answer = Answer(fault.status, fault.body(), "", kind=fault.kind)
        self._answer(respond, answer, operation, began)

    def _answer(self, respond: Respond, answer: Answer, operation: str, began: float) -> None:
        if not self._waiting:
            self._loop.call_soon(self._gather)
        self._waiting.append((respond, answer, operation, began))

    def _gather(self) -> None:
        """Waits for as long as every turn brings more; a turn in which nothing comes costs much less than the disk."""
        if self._seen < len(self._waiting) < MAX_TOGETHER:
            self._seen = len(self._waiting)
            self._loop.call_soon(self._gather)
        else:
            self.release()

    def release(self) -> None:
        """Makes the records of the answers that wait durable, and lets them go; without a record, as faults."""
        waiting, self._waiting, self._seen = self._waiting, [], 0
        lost = False
        try:
            self._commit()
        except OSError as error:
            lost = True
            self._watch.log("fault", error="the audit log cannot be written", because=error.strerror or "")
        now = time.perf_counter()
        for respond, given, operation, began in waiting:
            answer = _unrecorded(given) if lost else given
            self._watch.count(operation, outcome_of(answer.status, answer.kind), now - began)
            respond(answer)


def _unrecorded(answer: Answer) -> Answer:
    fault = KmsError("KMSInternalException", "The call could not be recorded.")
    return Answer(fault.status, fault.body(), answer.request_id, kind=fault.kind)
