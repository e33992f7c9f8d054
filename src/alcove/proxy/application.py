"""An application of an enclave, and what runs beside it: `alcove-enclave run`.

The application is a child. It starts when everything listens, gets the signals, and its end is the end, with its
status. With a lifeline (lifeline.py) its parent sees how it fares.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from alcove.errors import AlcoveError, MachineError
from alcove.proxy import companions
from alcove.proxy.companions import Companions
from alcove.proxy.lifeline import Lifeline, check
from alcove.proxy.service import take_descriptors

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_GRACE_SECONDS: Final = 10.0  # for the application, when a companion has failed
_CHUNK: Final = 65536
_log = logging.getLogger("alcove.proxy")


@dataclass(frozen=True, slots=True)
class Watch:
    """What the parent may see.

    Args:
        log: The application's output.
        health: A command whose status is its health; empty for none.
        interval: Seconds between two checks.
    """

    log: bool = False
    health: Sequence[str] = ()
    interval: float = 30.0


async def run(beside: Companions, program: Sequence[str], watch: Watch | None = None) -> int:
    """Serve, and run a program.

    Returns:
        The program's status; 128 and the number when a signal ended it.

    Raises:
        AlcoveError: A companion failed, or the program cannot be started.
    """
    take_descriptors()
    application = _Application(program, os.environ | companions.environment(beside), watch)
    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.ensure_future(_serve(beside, application.lifeline, stop, ready))
    started = asyncio.create_task(ready.wait())
    await asyncio.wait((serving, started), return_when=asyncio.FIRST_COMPLETED)
    try:
        if not serving.done():
            return await application.supervise(serving)
        await serving  # raises: nothing ends before the program otherwise
        raise MachineError("what runs beside the application ended before it began")
    finally:
        stop.set()
        started.cancel()
        with contextlib.suppress(AlcoveError, OSError):
            await serving


async def _serve(beside: Companions, lifeline: Lifeline | None, stop: asyncio.Event, ready: asyncio.Event) -> None:
    if lifeline is None:
        await companions.serve(beside, stop, ready.set)
        return
    listening = asyncio.Event()
    calls = asyncio.ensure_future(lifeline.serve(listening.set))
    first = asyncio.create_task(listening.wait())
    try:
        await asyncio.wait((calls, first), return_when=asyncio.FIRST_COMPLETED)
        if calls.done():
            await calls
        serving = asyncio.ensure_future(companions.serve(beside, stop, ready.set))
        await asyncio.wait((calls, serving), return_when=asyncio.FIRST_COMPLETED)
        await (calls if calls.done() else serving)
    finally:
        for task in (calls, first):
            task.cancel()
        await asyncio.gather(calls, first, return_exceptions=True)


class _Application:
    """The child, from its start to its end."""

    def __init__(self, program: Sequence[str], variables: dict[str, str], watch: Watch | None) -> None:
        self._program = program
        self._variables = variables
        self._watch = watch
        self._child: asyncio.subprocess.Process | None = None
        self._early: list[signal.Signals] = []
        self.lifeline = None if watch is None else Lifeline(self.signal, watch.log)

    def signal(self, number: signal.Signals) -> None:
        """Pass a signal on, once there is a child."""
        if self._child is None:
            self._early.append(number)
            return
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)

    async def supervise(self, serving: asyncio.Future[None]) -> int:
        """Run the child to its end, or until what is beside it fails."""
        for number in _SIGNALS:  # before there is a child: none may be lost
            asyncio.get_running_loop().add_signal_handler(number, self.signal, number)
        child = await self._start()
        beside = [asyncio.create_task(task) for task in self._tasks(child)]
        ended = asyncio.create_task(child.wait())
        await asyncio.wait((ended, serving), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            _log.error("what runs beside the application has failed; the application is ended")
            await self._end(ended)
            await serving
        if self.lifeline is not None:
            await asyncio.wait(beside[:1], timeout=1)  # the rest of its output; a grandchild may hold the pipe for ever
            await self.lifeline.end()
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        status = ended.result()
        return status if status >= 0 else 128 - status

    async def _start(self) -> asyncio.subprocess.Process:
        taken = asyncio.subprocess.PIPE if self._watch is not None and self._watch.log else None
        joined = None if taken is None else asyncio.subprocess.STDOUT
        try:
            child = await asyncio.create_subprocess_exec(
                *self._program, env=self._variables, stdout=taken, stderr=joined
            )
        except OSError as error:
            raise MachineError(f"cannot run {self._program[0]}: {error.strerror}") from None
        self._child = child
        for number in self._early:
            self.signal(number)
        return child

    def _tasks(self, child: asyncio.subprocess.Process) -> list[Coroutine[Any, Any, None]]:
        if self.lifeline is None or self._watch is None:
            return []
        tasks: list[Coroutine[Any, Any, None]] = [self._copy(child, self.lifeline)]
        if self._watch.health:
            tasks.append(check(self.lifeline, self._watch.health, self._watch.interval))
        return tasks

    async def _copy(self, child: asyncio.subprocess.Process, lifeline: Lifeline) -> None:
        """The child's output goes where it would have gone, and into the log."""
        while child.stdout is not None and (data := await child.stdout.read(_CHUNK)):
            lifeline.wrote(data)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    async def _end(self, ended: asyncio.Task[int]) -> None:
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), _GRACE_SECONDS)
        self.signal(signal.SIGKILL)
        await ended
