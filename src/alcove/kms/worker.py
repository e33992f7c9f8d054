"""One process that serves: its event loop, its chores, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import signal
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from typing import Final

import uvloop

from alcove.kms.audit import AuditLog
from alcove.kms.call import Tools
from alcove.kms.config import ServeConfig
from alcove.kms.connection import Connection
from alcove.kms.heads import log_name, note_head, noted_head
from alcove.kms.http import STS, KmsFace, Watch
from alcove.kms.keys import Realm
from alcove.kms.list_files import ListFiles
from alcove.kms.metrics import Metrics
from alcove.kms.model import kms_model
from alcove.kms.record import service_event
from alcove.kms.service import Service
from alcove.kms.stores import Store
from alcove.kms.sts import Sts
from alcove.kms.upkeep import housekeeping

PURGE_INTERVAL: Final = 3600.0
SWEEP_INTERVAL: Final = 1.0
USAGE_INTERVAL: Final = 60.0  # seconds for which last uses of keys are in memory alone


class Worker:
    """What serves on one listening socket.

    Args:
        config: What to serve.
        store: Open, and this process's own.
        audit: This process's own.
        metrics: Of all workers.
        number: This one's, from 0. The first one erases what is due.
    """

    def __init__(
        self, config: ServeConfig, store: Store, audit: AuditLog, metrics: Metrics, *, number: int = 0
    ) -> None:
        regions = tuple(dict.fromkeys((config.region, *config.more_regions)))
        self._config = config
        realm = Realm(store.account, config.region)
        self._tools = Tools(store, realm, secrets.token_bytes, regions, events=audit.append)
        self._audit = audit
        self._metrics = metrics
        self._number = number
        self._noted = (-1, "")
        self._connections: set[Connection] = set()

    def run(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        ready: Callable[[], None],
        *,
        stop: threading.Event | None = None,
        lifeline: int | None = None,
    ) -> None:
        """Serves until SIGTERM or SIGINT.

        Args:
            listener: Where clients come in.
            context: For TLS.
            ready: Called when requests are answered.
            stop: Ends it from another thread; signals are then left alone.
            lifeline: A descriptor; its end of file ends this process too.
        """
        self._check_log()
        self._note_head()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._run(listener, context, ready, stop, lifeline))
        self._tools.usages.save(self._tools.store)
        with contextlib.suppress(Exception):  # a database that is away; the head of a minute ago is there
            self._note_head()

    def _check_log(self) -> None:
        """Puts it on the record when the log lacks what it had: it was cut off, or another one is in its place."""
        number, digest = self._audit.head
        try:
            noted = noted_head(self._tools.store, log_name(self._audit.path)) or (0, digest)
        except ValueError:
            noted = (number + 1, "unreadable")
        if noted[0] > number or (noted[0] == number and noted[1] != digest):
            details = {"expected": f"{noted[0]}:{noted[1]}", "found": f"{number}:{digest}"}
            now, event_id = self._config.clock().timestamp(), str(uuid.uuid4())
            self._audit.append(service_event("AuditLogCut", self._tools.realm, "", now, event_id, **details))
            self._audit.commit()

    def _note_head(self) -> None:
        if self._audit.head != self._noted:
            number, digest = self._noted = self._audit.head
            note_head(self._tools.store, log_name(self._audit.path), f"{number}:{digest}")

    async def _run(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        ready: Callable[[], None],
        stop: threading.Event | None,
        lifeline: int | None,
    ) -> None:
        """Answers until it is told to end; then what is being answered still is."""
        loop, ending = asyncio.get_running_loop(), asyncio.Event()
        if stop is None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, ending.set)
        if lifeline is not None:
            loop.add_reader(lifeline, ending.set)
        face, secure = self._face(), context is not None
        server = await loop.create_server(
            lambda: Connection(face, self._connections, secure=secure), sock=listener, ssl=context
        )
        chores = [_sweep(self._connections), self._save(), *([self._purge(face)] if self._number == 0 else [])]
        chores += [_watch(stop, ending)] if stop else []
        working = [asyncio.create_task(chore) for chore in chores]
        gc.collect()
        gc.freeze()  # what is there now stays: later collections, in the middle of requests, need not look at it
        ready()
        await ending.wait()
        if lifeline is not None:
            loop.remove_reader(lifeline)
        gc.unfreeze()
        server.close()
        for task in working:
            task.cancel()
        await _drain(self._connections, self._config.grace)

    def _face(self) -> KmsFace:
        config, audit = self._config, self._audit
        lists = ListFiles(config.crls)
        service = Service(
            self._tools, kms_model(), config.roots, audit.append, config.clock, crls=lists.current, log=config.log
        )
        watch = Watch(self._metrics, self._metrics.counter(self._number), self._healthy, config.log)
        return KmsFace(service, Sts(self._tools, audit.append, config.clock), audit.commit, watch)

    def _healthy(self) -> bool:
        """Whether the store answers and the audit log takes records."""
        with contextlib.suppress(Exception):
            self._tools.store.check()
            return not self._audit.broken
        return False

    async def _purge(self, face: KmsFace) -> None:
        while True:
            with contextlib.suppress(Exception):  # a store that is busy or away now, or a full disk, is not later
                face.release()  # no answer may wait for records that are lost here
                housekeeping(self._tools, self._config.clock().timestamp())
                self._audit.commit()
            await asyncio.sleep(PURGE_INTERVAL)

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(USAGE_INTERVAL)
            with contextlib.suppress(Exception):  # likewise; they are kept until then
                self._tools.usages.save(self._tools.store)
                self._note_head()


async def _drain(connections: set[Connection], grace: float) -> None:
    """Lets open requests have their answers, for a while."""
    for connection in list(connections):
        connection.end()
    until = time.monotonic() + grace
    while connections and time.monotonic() < until:  # noqa: ASYNC110 - they leave one by one, at the end alone
        await asyncio.sleep(0.01)
    for connection in list(connections):
        connection.abort()
    await asyncio.sleep(0)


async def _sweep(connections: set[Connection]) -> None:
    """Ends the connections whose time is over."""
    clock = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(SWEEP_INTERVAL)
        now = clock()
        for connection in [one for one in connections if one.deadline <= now]:
            connection.expire()


async def _watch(stop: threading.Event, ending: asyncio.Event) -> None:
    while not stop.is_set():  # noqa: ASYNC110 - the event belongs to another thread
        await asyncio.sleep(0.05)
    ending.set()


def new_metrics(workers: int) -> Metrics:
    """Nothing counted yet, of every operation that there is."""
    return Metrics([*kms_model().operations, STS], workers)
