"""Two hashes over one pass: the digests, the order, the bounds and the ends of it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.image import builder, lanes
from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.format import SectionType
from alcove.image.lanes import PIECE, WINDOW, Piece, buffers, gathered, hash_pieces
from alcove.image.measure import Feed, Feeds
from alcove.image.reader import measure_eif, read_eif

CORES = pytest.mark.parametrize("cores", [{0}, {0, 1}], ids=["one-core", "two-cores"])
CHUNKS = st.lists(st.binary(max_size=60), max_size=60)


class Recorder:
    """Stands where a hash stands and keeps what it is given, as it is when `hold` lets it look."""

    def __init__(self, hold: Callable[[], object] = lambda: None) -> None:
        self.seen: list[bytes] = []
        self._hold = hold

    def update(self, data: bytes | memoryview) -> None:
        """Keep a copy."""
        self._hold()
        self.seen.append(bytes(data))


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Lets the process believe that it may run on these cores."""
    return lambda cores: monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)


def run(feeds: Feeds, chunks: list[bytes]) -> None:
    hash_pieces(iter([(feeds, chunk) for chunk in chunks]))


@CORES
def test_both_hashes_get_every_piece(on: Callable[[set[int]], None], cores: set[int]) -> None:
    """However many cores there are, the digests are those of the whole data."""
    on(cores)
    chunks = [bytes([n]) * (PIECE // 7 * n) for n in range(30)]
    hashes = hashlib.sha384(), hashlib.sha384(b"before")
    run(hashes, chunks)
    data = b"".join(chunks)
    assert [one.digest() for one in hashes] == [
        hashlib.sha384(data).digest(),
        hashlib.sha384(b"before" + data).digest(),
    ]


def test_a_thread_that_cannot_start_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no thread left to give, one thread does the work of two."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    feeds = Recorder(), Recorder()
    run(feeds, [b"a", b"b"])
    assert feeds[0].seen == feeds[1].seen == [b"a", b"b"]


@given(CHUNKS)
def test_gathering_changes_no_byte(chunks: list[bytes]) -> None:
    """Small chunks come out together, empty ones disappear, and the bytes are the same."""
    big = [bytes([n]) * size for n, size in enumerate((PIECE // 4, PIECE // 4 - 1, PIECE + 1))]
    mixed = [*chunks, big[0], *chunks, big[1], *chunks, big[2], *chunks]
    out = [bytes(chunk) for chunk in gathered(mixed)]
    assert b"".join(out) == b"".join(mixed)
    assert all(out)


def test_gathered_pieces_are_few_and_bounded() -> None:
    """A hundred thousand small chunks make as many pieces as fill them, none above the limit."""
    sizes = [len(chunk) for chunk in gathered(b"x" * 110 for _ in range(100_000))]
    assert len(sizes) == -(-110 * 100_000 // (PIECE // 110 * 110))
    assert max(sizes) <= PIECE


def test_a_buffer_is_not_used_again_before_both_are_done() -> None:
    """A lane that stands still stops the source after `WINDOW` pieces, and sees the bytes as they were."""
    full, fetched = threading.Event(), 0
    slow, fast = Recorder(lambda: full.wait(10)), Recorder()

    def pieces() -> Iterator[Piece]:
        nonlocal fetched
        for number, buffer in zip(range(3 * WINDOW), buffers(), strict=False):
            fetched += 1
            buffer[:1] = bytes([number])
            yield (slow, fast), buffer[:1]

    runner = threading.Thread(target=hash_pieces, args=(pieces(),))
    runner.start()
    while len(fast.seen) < WINDOW:  # the other lane goes as far as it may
        full.wait(0.01)
    held = fetched
    full.set()
    runner.join(10)
    assert held == WINDOW
    assert slow.seen == fast.seen == [bytes([number]) for number in range(3 * WINDOW)]


@CORES
def test_the_source_is_asked_by_one_thread_at_a_time(on: Callable[[set[int]], None], cores: set[int]) -> None:
    """A generator with state needs no lock of its own."""
    on(cores)
    busy = threading.Lock()

    class Source:
        def __init__(self) -> None:
            self.count = 0

        def __iter__(self) -> Iterator[Piece]:
            return self

        def __next__(self) -> Piece:
            assert busy.acquire(blocking=False)
            self.count += 1
            try:
                if self.count > 500:
                    raise StopIteration
                return (hashlib.sha384(), hashlib.sha384()), bytes(4096)
            finally:
                busy.release()

    hash_pieces(iter(Source()))


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


@CORES
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, StopAsyncIteration])
@pytest.mark.parametrize("after", [0, 1, 5, 40])
def test_an_error_of_the_source_comes_out_and_leaves_no_thread(
    on: Callable[[set[int]], None], cores: set[int], error: type[BaseException], after: int
) -> None:
    """Whichever thread meets it: what the source raises, the caller gets."""
    on(cores)
    before = threads()

    def pieces() -> Iterator[Piece]:
        for _ in range(after):
            yield (hashlib.sha384(), hashlib.sha384()), bytes(5000)
        raise error("broken")

    with pytest.raises(error, match="broken"):
        hash_pieces(pieces())
    assert threads() == before


@CORES
@pytest.mark.parametrize("lane", [0, 1])
def test_an_error_in_either_lane_comes_out_and_leaves_no_thread(
    on: Callable[[set[int]], None], cores: set[int], lane: int
) -> None:
    """A hash that fails ends both lanes, and an endless source with them."""
    on(cores)
    before = threads()

    def fail() -> None:
        raise MemoryError

    feeds: list[Feed] = [hashlib.sha384(), hashlib.sha384()]
    feeds[lane] = Recorder(fail)

    def endless() -> Iterator[Piece]:
        while True:
            yield tuple(feeds), b"x"

    with pytest.raises(MemoryError):
        hash_pieces(endless())
    assert threads() == before


def test_pieces_that_go_into_no_hash_are_fetched_all_the_same() -> None:
    """Metadata is written and summed, not measured."""
    out: list[bytes] = []

    def pieces() -> Iterator[Piece]:
        for chunk in (b"a", b"b", b"c"):
            out.append(chunk)
            yield (), chunk

    hash_pieces(pieces())
    assert out == [b"a", b"b", b"c"]


def test_the_window_is_small() -> None:
    """The bound on memory that the benchmarks rely on."""
    assert lanes.PIECE * lanes.WINDOW <= 16 << 20


def test_giving_to_the_disk_early_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written back on the way, and then patched in the end, is the same file."""
    ramdisk = [bytes([n]) * 300_000 for n in range(20)]
    sections = [NewSection(SectionType.KERNEL, (b"k",)), NewSection(SectionType.CMDLINE, (b"c",))]
    sections += [NewSection(SectionType.METADATA, (b"{}",)), NewSection(SectionType.RAMDISK, ramdisk)]
    write_eif(tmp_path / "late", NewHeader(0), sections)
    monkeypatch.setattr(builder, "_WRITE_BACK", 1 << 20)
    measured = write_eif(tmp_path / "early", NewHeader(0), sections).measurements()
    assert (tmp_path / "early").read_bytes() == (tmp_path / "late").read_bytes()
    with (tmp_path / "early").open("rb") as file:
        eif = read_eif(file)
        measurer, crc = measure_eif(file, eif)
    assert measurer.measurements() == measured
    assert crc == eif.header.eif_crc32
