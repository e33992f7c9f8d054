"""Layers of a container image made ready: each as a plain tar file whose digests have been checked.

A blob is read once. What is not compressed stays where it is; what is goes to a spool file, and both digests, of the
blob and of what it unpacks to, are computed on the way. Nobody looks into a layer before they are right. Layers are
given out as they get ready, in any order, so that one is looked into while others are still hashed.

Several layers are made ready at a time, each in a thread, a large one in two: hashlib and ISA-L let go of the
interpreter's lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO, Final

from alcove.errors import AlcoveError, ImageFormatError, MachineError
from alcove.image.sources.container import OnBytes
from alcove.image.sources.limits import NO_ROOM, Limits
from alcove.image.sources.unpack import GZIP, ZSTD, BrokenError, StoppedError, ahead, gunzipped, unzstd
from alcove.image.threads import NoThreadsError, running, taken

STAGE: Final = "reading the layers"
_AT_ONCE: Final = 4  # layers that are made ready at the same time, at a few chunks of memory each
_CHUNK: Final = 1 << 20
_PLAIN_CHUNK: Final = 2 << 20  # after each, a thread may have to wait for one that runs Python
_DIGEST: Final = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")


# Takes a layer's number, 0 is the lowest, its tar file, and what to call now and then: it raises when nobody waits.
Use = Callable[[int, Path, Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: its blob, and the digest of what the blob unpacks to."""

    digest: str
    path: Path
    diff_id: str


class Checksum:
    """A digest that bytes must have.

    Raises:
        ImageFormatError: When the text is no digest.
    """

    def __init__(self, digest: str) -> None:
        self.algorithm, self.expected = split_digest(digest)
        self._digest = digest
        self._hash = hashlib.new(self.algorithm)
        self.update: Callable[[bytes | memoryview], None] = self._hash.update

    def check(self) -> None:
        """Compare.

        Raises:
            ImageFormatError: When the bytes have another.
        """
        actual = self._hash.hexdigest()
        if actual != self.expected:
            raise ImageFormatError(
                f"the content of {self._digest} has the digest {self.algorithm}:{actual}", field="digest"
            )


def split_digest(digest: str) -> tuple[str, str]:
    """Algorithm and hexadecimal digits.

    Raises:
        ImageFormatError: When the text is no digest of SHA-256 or SHA-512.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ImageFormatError(f"{digest[:80]!r} is not a digest of SHA-256 or SHA-512", field="digest")
    return match[1] or match[3], match[2] or match[4]


class _Work:
    """What the threads share: the limit, how far they are, and whether anybody still waits for them."""

    def __init__(self, limits: Limits, total: int, on_bytes: OnBytes) -> None:
        self.limits = limits
        self.stopped = threading.Event()
        self._done, self._total = 0, total
        self.cores = len(os.sched_getaffinity(0))
        self._on_bytes = on_bytes
        self._lock = threading.Lock()

    def check(self) -> None:
        if self.stopped.is_set():
            raise StoppedError

    def is_large(self, size: int) -> bool:
        """Whether a layer of that size would still be at work when the other cores have done all else."""
        return size * self.cores > self._total

    def advance(self, count: int) -> None:
        self.check()
        with self._lock:
            self._done += count
            self._on_bytes(STAGE, self._done, self._total)


class _Blob:
    """A blob that is hashed as it is read."""

    def __init__(self, file: BinaryIO, digest: str, work: _Work) -> None:
        self._file, self._checksum, self._work = file, Checksum(digest), work

    def read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        self._checksum.update(chunk)
        self._work.advance(len(chunk))
        return chunk

    def check(self) -> None:
        """Hash the rest, and compare."""
        buffer = memoryview(bytearray(_PLAIN_CHUNK))  # new memory costs as much as a copy
        while count := self._file.readinto(buffer):  # type: ignore[attr-defined]  # a raw file has it
            self._checksum.update(buffer[:count])
            self._work.advance(count)
        self._checksum.check()


def use_layers(layers: Sequence[Layer], directory: Path, limits: Limits, on_bytes: OnBytes, use: Use) -> None:
    """Make layers ready, several at a time, and call `use` with each as a plain tar file, in the order they get ready.

    Of several layers that are broken, or that `use` refuses, the lowest is told. No thread is left at the end.

    Args:
        layers: Lowest first.
        directory: Where spool files go.
        limits: What a layer may unpack to.
        on_bytes: Progress, over the bytes of the blobs; called from any thread, one at a time.
        use: Called from any thread, one at a time: that which made the layer ready goes on with it, so that there are
            no more threads than cores, and the next layer is hashed meanwhile.

    Raises:
        ImageFormatError: When a digest is wrong, a layer is too large or its compression is broken.
        MachineError: When the program zstd is needed and missing, or the disk is full.
    """
    work = _Work(limits, sum(_size(layer.path) for layer in layers), on_bytes)
    using = threading.Lock()

    def make(index: int) -> None:
        spool = _ready(layers[index], directory / f"layer-{index}.tar", work)
        with using:
            use(index, spool, work.check)

    todo: SimpleQueue[int] = SimpleQueue()
    for index in sorted(range(len(layers)), key=lambda index: -_size(layers[index].path)):
        todo.put(index)
    ended: SimpleQueue[tuple[int, BaseException | None]] = SimpleQueue()

    def make_what_is_left() -> None:
        while not work.stopped.is_set():
            try:
                index = todo.get_nowait()
            except Empty:
                return
            try:
                make(index)
            except BaseException as error:  # noqa: BLE001  # raised again by the thread that called
                ended.put((index, error))
                if not isinstance(error, AlcoveError):
                    return
            else:
                ended.put((index, None))

    threads = min(_AT_ONCE, work.cores, len(layers))
    try:
        with running([make_what_is_left] * threads, work.stopped.set):
            _wait(ended, len(layers))
    except NoThreadsError:
        make_what_is_left()
        _wait(ended, len(layers))


def _wait(ended: SimpleQueue[tuple[int, BaseException | None]], count: int) -> None:
    """Wait for all layers, or, after a failure, for those below it: one of them may have the failure to tell."""
    failure: BaseException | None = None
    left, end = set(range(count)), count
    while left and min(left) < end:
        index, error = taken(ended)
        left.discard(index)
        if error is not None and not isinstance(error, AlcoveError):
            raise error
        if error is not None and index < end:
            failure, end = error, index
    if failure is not None:
        raise failure


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _ready(layer: Layer, spool: Path, work: _Work) -> Path:
    with _opened(layer) as file:
        magic = file.read(4)
        file.seek(0)
        blob = _Blob(file, layer.digest, work)
        if magic[:2] == GZIP:
            content = gunzipped(blob.read)
            large = work.is_large(_size(layer.path))
            _unpack(layer, blob, ahead(content) if large else content, spool, work)
        elif magic == ZSTD:
            _unpack(layer, blob, unzstd(blob.read), spool, work)
        else:
            _check_plain(layer, blob, work)
            return layer.path
    return spool


@contextmanager
def _opened(layer: Layer) -> Iterator[BinaryIO]:
    if not layer.path.is_file():  # or a pipe, which nobody would ever write to
        raise ImageFormatError(f"the blob {layer.digest} is missing", field="layer")
    try:
        with layer.path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise ImageFormatError(f"the blob {layer.digest} cannot be read: {error.strerror}", field="layer") from None


def _check_plain(layer: Layer, blob: _Blob, work: _Work) -> None:
    """Check a layer that is not compressed: its two digests are one, unless their algorithms differ."""
    if _size(layer.path) > work.limits.layer:
        raise work.limits.too_large()
    inner = Checksum(layer.diff_id)
    if layer.diff_id != layer.digest:
        while chunk := blob.read(_CHUNK):
            inner.update(chunk)
        blob.check()
        inner.check()
    blob.check()


def _unpack(layer: Layer, blob: _Blob, content: Generator[bytes, None, None], spool: Path, work: _Work) -> None:
    """Write what a blob unpacks to into its spool file, and check both digests."""
    inner, size = Checksum(layer.diff_id), 0
    with _writing(spool) as out, closing(content):
        try:
            for chunk in content:
                size += len(chunk)
                if size > work.limits.layer:
                    raise work.limits.too_large()
                inner.update(chunk)
                _write(out, chunk, spool)
        except BrokenError as error:
            blob.check()  # when the blob is not what it should be, that is what is wrong
            raise ImageFormatError(f"the layer's compression is broken: {error}", field="layer") from None
    blob.check()
    inner.check()


def _writing(spool: Path) -> BinaryIO:
    try:
        return spool.open("wb", buffering=0)
    except OSError as error:
        raise _no_room(spool, error) from None


def _write(out: BinaryIO, chunk: bytes, spool: Path) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[out.write(rest) :]
    except OSError as error:
        raise _no_room(spool, error) from None


def _no_room(spool: Path, error: OSError) -> MachineError:
    return MachineError(f"a layer cannot be unpacked to `{spool.parent}`: {error.strerror}", hint=NO_ROOM, code="E48")
