"""One pass of data through two hashes, on two cores: hashlib lets go of the interpreter's lock while it hashes.

Every measured byte goes into two registers (eif.md §2). Each of the two hashes has a lane: a thread that takes piece
after piece. Fetching a piece (reading, writing, the checksum) costs time too, and falls to the lane that is ahead, so
that both end together. A piece is dropped when both lanes are done with it; memory is bounded by `WINDOW` pieces.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle
from queue import SimpleQueue
from typing import Final

from alcove.image.measure import Feeds
from alcove.image.threads import NoThreadsError, running, taken

Chunk = bytes | memoryview
Piece = tuple[Feeds, Chunk]  # a chunk and the hashes that it goes into: one for each lane, or none at all

PIECE: Final = 1 << 20  # bytes: large against a thread's switch, small against the processor's last cache
WINDOW: Final = 8  # pieces that may be in use at once
_READ_AHEAD: Final = 4  # pieces that the lane ahead keeps for itself, so that the other never waits for a fetch
COPIED: Final = PIECE // 4  # smaller chunks are gathered: a copy is cheaper than a piece of their own


def buffers() -> Iterator[memoryview]:
    """Buffers of `PIECE` bytes, each given again when `WINDOW` more have been: its piece is out of use by then."""
    made = []
    for _ in range(WINDOW):
        made.append(memoryview(bytearray(PIECE)))  # when it is needed: a small image does without most
        yield made[-1]
    yield from cycle(made)


def gathered(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The same bytes with small chunks put together; what is yielded holds until `WINDOW` more have been."""
    room = buffers()
    buffer, used = next(room), 0
    for chunk in chunks:
        if used and (len(chunk) >= COPIED or len(chunk) > PIECE - used):
            yield buffer[:used]
            buffer, used = next(room), 0
        if len(chunk) >= COPIED:
            yield chunk
        else:
            buffer[used : used + len(chunk)] = chunk
            used += len(chunk)
    if used:
        yield buffer[:used]


def hash_pieces(pieces: Iterator[Piece]) -> None:
    """Put each piece into its two hashes.

    `pieces` is asked for one piece at a time, in order, from either of two threads. Its errors, and Ctrl-C, come out of
    this call, and no thread is left when it ends.
    """
    window = _Window(pieces)
    if not _side_by_side(window):
        for feeds, chunk in pieces:
            for feed in feeds:
                feed.update(chunk)
    if window.failure is not None:
        raise window.failure


def _side_by_side(window: _Window) -> bool:
    """Run both lanes; False, and nothing is done, where there is one core or no thread to be had."""
    ended: SimpleQueue[None] = SimpleQueue()

    def run(lane: int) -> None:
        window.run(lane)
        ended.put(None)

    if len(os.sched_getaffinity(0)) < 2:
        return False
    try:
        with running([partial(run, 0), partial(run, 1)], window.end):
            taken(ended)
            taken(ended)
    except NoThreadsError:
        return False
    return True


class _Window:
    """The pieces that the lanes are at; lane 0 and lane 1 go through them at their own pace."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._kept: list[Piece | None] = [None] * WINDOW  # piece n is at n modulo WINDOW
        self._fetched = 0
        self._fetching = False
        self._at = [-1, -1]  # the number of the piece that a lane has, or waits for
        self._ended = False
        self._changed = threading.Condition()
        self.failure: BaseException | None = None

    def run(self, lane: int) -> None:
        """Hash every piece in one lane; what goes wrong ends both and is kept as `failure`."""
        try:
            while (piece := self._next(lane)) is not None:
                feeds, chunk = piece
                if feeds:
                    feeds[lane].update(chunk)
        except BaseException as error:  # noqa: BLE001  # raised again by the thread that called
            self.end(error)

    def end(self, failure: BaseException | None = None) -> None:
        """Fetch no more; with a failure, hash no more either."""
        with self._changed:
            self._ended = True
            self.failure = self.failure or failure
            self._changed.notify_all()

    def _next(self, lane: int) -> Piece | None:
        """The next piece for a lane, which is done with the one before; None at the end."""
        with self._changed:
            self._at[lane] += 1
            self._changed.notify_all()
        while self._claim(lane):
            self._fetch()
        with self._changed:
            at = self._at[lane]
            return self._kept[at % WINDOW] if at < self._fetched and self.failure is None else None

    def _claim(self, lane: int) -> bool:
        """Wait until a lane can go on; whether it has to fetch a piece first."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._at[lane] < self._fetched or self._may_fetch(lane))
            claimed = self._may_fetch(lane)
            self._fetching = self._fetching or claimed
            return claimed

    def _may_fetch(self, lane: int) -> bool:
        at = self._at[lane]
        wanted = at == max(self._at) and self._fetched - at < _READ_AHEAD
        room = self._fetched - min(self._at) < WINDOW
        return wanted and room and not self._fetching and not self._ended

    def _fetch(self) -> None:
        piece = next(self._pieces, None)
        with self._changed:
            self._fetching = False
            self._ended = self._ended or piece is None
            if piece is not None:
                self._kept[self._fetched % WINDOW] = piece
                self._fetched += 1
            self._changed.notify_all()
