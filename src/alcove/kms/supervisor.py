"""Several worker processes on one address: they are started, watched, started anew, and ended together.

Each worker has a listening socket that this process holds as well: connections that come while a worker starts anew
wait, none is refused. Each has an audit log of its own, so that each chain has one writer. A worker that dies is
replaced; one that cannot start, or dies again and again, ends the service. When this process dies, its workers end.

    SIGTERM, SIGINT    every worker answers what it has begun, and ends
    SIGHUP             they do so one after another, each replaced before the next one ends, with the TLS files of then;
                       on a terminal, which has gone away, it is as SIGTERM
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import ssl
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

from alcove.errors import AlcoveError, MachineError, UsageError
from alcove.kms.audit import AuditLog
from alcove.kms.config import ServeConfig
from alcove.kms.rootkey import RootKey
from alcove.kms.rootplace import KnownRoot
from alcove.kms.stores import one_line, open_store
from alcove.kms.worker import Worker, new_metrics

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
START_TIME: Final = 60.0  # seconds that a worker has to start
LOOK: Final = 2.0  # seconds after which it looks for dead workers in any case
STEADY: Final = 10.0  # seconds after which a worker counts as well
MAX_DEATHS: Final = 5  # of workers that were not well yet, one after another
PAUSE: Final = 0.2  # seconds before the first of them is replaced; twice as many before each next one


@dataclass(slots=True)
class _Slot:
    """The place of one worker."""

    number: int
    listener: socket.socket
    process: int = 0
    started: float = 0.0


class Supervisor:
    """The parent of the workers; it serves nothing itself.

    Args:
        config: What to serve.
        root: The root key, so that nobody is asked for it again.
        listeners: One a worker, bound to one address.
        context: Makes the TLS context.
    """

    def __init__(
        self,
        config: ServeConfig,
        root: RootKey,
        listeners: Sequence[socket.socket],
        context: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self._config = replace(config, root_key=KnownRoot.of_key(root))
        self._slots = [_Slot(number, listener) for number, listener in enumerate(listeners)]
        self._make_context = context
        self._context = context()
        self._lifeline, self._life = os.pipe()
        self._deaths = 0
        self._metrics = new_metrics(len(self._slots))

    def run(self, ready: Callable[[], None]) -> None:
        """Serves until SIGTERM or SIGINT.

        Raises:
            UsageError: A worker cannot start.
            MachineError: Workers die as soon as they are started.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for slot in self._slots:
                self._start(slot)
            ready()
            self._watch()
        finally:
            self._end()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(self._lifeline)
            os.close(self._life)

    def _watch(self) -> None:
        ends = {signal.SIGTERM, signal.SIGINT} | ({signal.SIGHUP} if os.isatty(2) else set())
        while True:
            found = signal.sigtimedwait(SIGNALS, LOOK)
            number = found.si_signo if found else 0
            if number in ends:
                return
            self._replace_dead()
            if number == signal.SIGHUP:
                self._config.log("restarting the workers")
                with contextlib.suppress(UsageError):  # files that do not fit: the ones that do stay in use
                    self._context = self._make_context()
                for slot in self._slots:
                    self._stop([slot])
                    self._start(slot)

    def _replace_dead(self) -> None:
        for slot in self._slots:
            while os.waitpid(slot.process, os.WNOHANG)[0]:
                self._config.log("worker died", number=slot.number + 1, process=slot.process)
                well = time.monotonic() - slot.started > STEADY
                self._deaths = 0 if well else self._deaths + 1
                slot.process = 0
                if self._deaths >= MAX_DEATHS:
                    raise MachineError("the workers die as soon as they are started")
                if self._deaths:
                    time.sleep(PAUSE * 2 ** (self._deaths - 1))
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        """Starts a worker, and waits until it serves."""
        told, tells = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        slot.process, slot.started = os.fork(), time.monotonic()
        if slot.process == 0:
            os.close(told)
            self._serve(slot, tells)
        os.close(tells)
        with open(told, "rb") as channel:  # noqa: PTH123 - a descriptor
            text = channel.read() if select.select([channel], [], [], START_TIME)[0] else b""
        if text != b"ready":
            self._stop([slot])
            raise _said(text)

    def _serve(self, slot: _Slot, tells: int) -> NoReturn:
        """The life of a worker, which ends here."""
        status = 1
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it goes to the supervisor
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.close(self._life)
            for other in self._slots:
                if other is not slot:
                    other.listener.close()
            self._work(slot, tells)
            status = 0
        except AlcoveError as error:
            try:
                os.write(tells, json.dumps([type(error).__name__, error.message, error.hint]).encode())
            except OSError:  # it has served already, and nobody listens any more
                self._config.log("worker cannot go on", number=slot.number + 1, error=error.message)
        except BaseException:  # noqa: BLE001 - nothing may come back into the supervisor's code
            traceback.print_exc()
        finally:
            os._exit(status)

    def _work(self, slot: _Slot, tells: int) -> None:
        config = self._config
        path = audit_path(config, slot.number)
        with (
            one_line(),
            contextlib.closing(open_store(config.store, config.root_key)) as store,
            contextlib.closing(AuditLog(path)) as audit,
        ):

            def ready() -> None:
                os.write(tells, b"ready")
                os.close(tells)

            worker = Worker(config, store, audit, self._metrics, number=slot.number)
            worker.run(slot.listener, self._context, ready, lifeline=self._lifeline)

    def _end(self) -> None:
        self._stop([slot for slot in self._slots if slot.process])

    def _stop(self, slots: Sequence[_Slot]) -> None:
        """Ends workers; by force when they take longer than they may."""
        for slot in slots:
            with contextlib.suppress(ProcessLookupError):
                os.kill(slot.process, signal.SIGTERM)
        until = time.monotonic() + self._config.grace + STEADY
        for slot in slots:
            while os.waitpid(slot.process, os.WNOHANG)[0] == 0:
                signal.sigtimedwait({signal.SIGCHLD}, 0.1)
                if time.monotonic() > until:
                    os.kill(slot.process, signal.SIGKILL)
            slot.process = 0


def audit_path(config: ServeConfig, number: int) -> Path:
    """The audit log of a worker; the first one's is the server's own."""
    path = config.audit
    return path if number == 0 else path.with_name(f"{path.stem}.{number + 1}{path.suffix}")


def _said(text: bytes) -> AlcoveError:
    """Why a worker did not start, in its own words."""
    try:
        kind, message, hint = json.loads(text)
    except ValueError:
        return MachineError("a worker did not start")
    return {"UsageError": UsageError}.get(kind, MachineError)(message, hint=hint)
