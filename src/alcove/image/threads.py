"""Threads whose main thread may be interrupted.

Ctrl-C and SIGTERM raise an exception in the main thread between any two of its instructions. When it has just taken a
lock, nobody gives that lock back, and a thread that wants it waits for ever. So the main thread leaves the work to
others: it waits at a `SimpleQueue`, which is C and holds no lock meanwhile, and cleans up with the signals held back.
And it looks up from its wait now and then, since a signal that comes just before a wait does not end it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

_SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_LOOK: Final = 0.1  # seconds


_T = TypeVar("_T")


class NoThreadsError(Exception):
    """The system gives no more threads: a container's limit on processes counts them."""


@contextmanager
def running(works: Sequence[Callable[[], None]], stop: Callable[[], None]) -> Iterator[None]:
    """Run functions side by side, each in a thread of its own, while the block runs; none is left after it.

    Args:
        works: What the threads do; no exception comes out of them.
        stop: Called at the end of the block, however it comes to it; lets the works end soon.

    Raises:
        NoThreadsError: When there are too few threads for all; nothing has been run.
    """
    go: SimpleQueue[bool] = SimpleQueue()

    def start_with_all(work: Callable[[], None]) -> None:
        if go.get():
            work()

    threads = [threading.Thread(target=start_with_all, args=(work,), name="image") for work in works]
    started = False
    try:
        with _uninterrupted():  # the threads inherit it: a signal always finds the main thread, and wakes it
            _start(threads, go)
            started = True
        yield
    finally:
        if started:
            with _uninterrupted():
                stop()
                for thread in threads:
                    thread.join()


def taken(queue: SimpleQueue[_T]) -> _T:
    """The next of a queue, when there is one; signals are seen meanwhile."""
    while True:
        with suppress(Empty):
            return queue.get(timeout=_LOOK)


def _start(threads: Sequence[threading.Thread], go: SimpleQueue[bool]) -> None:
    """Start all, and let them go when they are all there; or none."""
    started = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
    except RuntimeError:
        for _ in started:
            go.put(False)  # it is what they wait for
        for thread in started:
            thread.join()
        raise NoThreadsError from None
    for _ in started:
        go.put(True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A block that signals wait for; in a thread that is not the main one it is nothing special."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
