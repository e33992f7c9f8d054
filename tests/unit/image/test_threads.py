"""Threads, and a main thread that a signal interrupts anywhere."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import pytest

from alcove.image.threads import NoThreadsError, running

# Goes through small pieces for ever, so that it is nearly always at a lock; SIGTERM ends a round of it.
ROUNDS = """
import hashlib, signal, threading
from alcove.image.lanes import hash_pieces

class Ended(BaseException):
    pass

def end(*_):
    raise Ended

def pieces():
    feeds, chunk = (hashlib.sha384(), hashlib.sha384()), bytes(20_000)
    yield feeds, chunk
    print("runs", flush=True)
    while True:
        yield feeds, chunk

signal.signal(signal.SIGTERM, end)
while True:
    try:
        hash_pieces(pieces())
    except Ended:
        print("ended", threading.active_count(), flush=True)
"""


def test_a_signal_at_any_moment_ends_the_threads() -> None:
    """Wherever it meets the main thread: the hashing ends, again and again, and leaves no thread."""
    with subprocess.Popen([sys.executable, "-c", ROUNDS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        try:
            for number in range(300):
                assert process.stdout.readline() == "runs\n", "a round has not ended"
                time.sleep(number % 20 / 4000)
                process.terminate()
                assert process.stdout.readline() == "ended 1\n", "a round has not ended"
        finally:
            watchdog.cancel()
            process.kill()


def test_the_works_run_side_by_side() -> None:
    """Each waits for the other: one after the other they would wait for ever."""
    barrier, ended = threading.Barrier(3), SimpleQueue[int]()

    def work() -> None:
        ended.put(barrier.wait(60))

    with running([work, work, work], lambda: None):
        assert {ended.get(), ended.get(), ended.get()} == {0, 1, 2}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_who_gives_up_stops_them(error: type[BaseException]) -> None:
    """An exception in the block calls `stop`, and comes out when no thread is left."""
    before, stopped = threading.active_count(), threading.Event()
    with pytest.raises(error), running([stopped.wait] * 2, stopped.set):  # type: ignore[list-item]
        raise error
    assert threading.active_count() == before


@pytest.mark.parametrize("available", [0, 1, 2])
def test_all_run_or_none(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    """With fewer threads than wanted nothing is begun, and those that started have ended."""
    start: Callable[[threading.Thread], None] = threading.Thread.start
    before, ran, left = threading.active_count(), [], [available]

    def start_some(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    with pytest.raises(NoThreadsError), running([lambda: ran.append(1)] * 3, lambda: None):
        pytest.fail("the block ran")
    assert ran == []
    assert threading.active_count() == before
