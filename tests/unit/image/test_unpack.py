"""Pieces that one thread makes and another takes."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import count

import pytest

from alcove.image.sources import unpack
from alcove.image.sources.unpack import ahead


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Whatever happens, the thread has ended with the generator."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "unpack"]


def numbers(end: int, failure: BaseException | None = None) -> Generator[bytes, None, None]:
    for number in range(end):
        yield b"%d" % number
    if failure is not None:
        raise failure


@pytest.mark.parametrize("end", [0, 1, 3, 1000])
def test_the_pieces_come_in_their_order(end: int) -> None:
    """All of them, and nothing else."""
    assert list(ahead(numbers(end))) == [b"%d" % number for number in range(end)]


@pytest.mark.parametrize("failure", [unpack.BrokenError("cut"), unpack.StoppedError(), MemoryError()])
def test_an_error_comes_out_where_it_came(failure: BaseException) -> None:
    """After the pieces before it, in the thread that takes them."""
    pieces = ahead(numbers(10, failure))
    assert len([next(pieces) for _ in range(10)]) == 10
    with pytest.raises(type(failure)) as caught:
        next(pieces)
    assert caught.value is failure


def test_no_more_is_made_than_can_wait() -> None:
    """Who does not take holds up who makes; what was given up is closed, by the thread that made it."""
    made, closed = [], []
    full = threading.Event()

    def endless() -> Generator[bytes, None, None]:
        try:
            for number in count():
                made.append(number)
                if number == unpack._AHEAD:
                    full.set()
                yield b"x"
        finally:
            closed.append(threading.current_thread().name)

    with closing(ahead(endless())) as pieces:
        next(pieces)
        assert full.wait(30)
    assert closed == ["unpack"]
    assert len(made) == unpack._AHEAD + 1


def test_without_a_thread_one_does_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no thread left to give."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert list(ahead(numbers(3))) == [b"0", b"1", b"2"]
