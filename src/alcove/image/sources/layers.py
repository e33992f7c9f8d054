"""Layers of a container image made ready: each as a plain tar file whose digests have been checked.

A blob is read once. What is not compressed stays where it is; what is goes to a spool file, and both digests, of the
blob and of what it unpacks to, are computed on the way. Nobody looks into a layer before they are right. Layers are
given out as they get ready, in any order, so that one is looked into while others are still hashed.

Several layers are made ready at a time, each in a thread: hashlib and ISA-L let go of the interpreter's lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final

from isal.igzip_lib import DECOMP_GZIP, IgzipDecompressor, IsalError

from alcove.errors import AlcoveError, ImageFormatError, MachineError
from alcove.image.sources.container import OnBytes
from alcove.image.sources.limits import NO_ROOM, Limits

STAGE: Final = "reading the layers"
_AT_ONCE: Final = 4  # layers that are made ready at the same time, at a few chunks of memory each
_CHUNK: Final = 1 << 20
_PLAIN_CHUNK: Final = 2 << 20  # after each, a thread may have to wait for one that runs Python
_COMPRESSED_CHUNK: Final = 1 << 17  # what a gzip member leaves of it is copied for the next
_GZIP_HEADER: Final = 1 << 12  # a member's header is shorter
_DIGEST: Final = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_GZIP: Final = b"\x1f\x8b"  # RFC 1952 §2.3.1
_ZSTD: Final = b"\x28\xb5\x2f\xfd"  # RFC 8878 §3.1.1


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


class _StoppedError(Exception):
    """Nobody waits for the layers any more."""


class _Work:
    """What the threads share: the limit, how far they are, and whether anybody still waits for them."""

    def __init__(self, limits: Limits, total: int, on_bytes: OnBytes) -> None:
        self.limits = limits
        self.stopped = threading.Event()
        self._done, self._total = 0, total
        self._on_bytes = on_bytes
        self._lock = threading.Lock()

    def check(self) -> None:
        if self.stopped.is_set():
            raise _StoppedError

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

    with ThreadPoolExecutor(min(_AT_ONCE, len(os.sched_getaffinity(0)))) as pool:
        largest_first = sorted(range(len(layers)), key=lambda index: -_size(layers[index].path))
        try:
            _wait({pool.submit(make, index): index for index in largest_first})
        finally:
            work.stopped.set()
            pool.shutdown(cancel_futures=True)


def _wait(futures: dict[Future[None], int]) -> None:
    """Wait for all layers, or, after a failure, for those below it: one of them may have the failure to tell."""
    failure: AlcoveError | None = None
    left, end = set(futures.values()), len(futures)
    for future in as_completed(futures):
        index = futures[future]
        left.remove(index)
        try:
            future.result()
        except AlcoveError as error:
            if index < end:
                failure, end = error, index
        if failure is not None and (not left or min(left) > end):
            raise failure


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _ready(layer: Layer, spool: Path, work: _Work) -> Path:
    with _opened(layer) as file:
        magic = file.read(4)
        file.seek(0)
        blob = _Blob(file, layer.digest, work)
        if magic[:2] == _GZIP:
            _unpack(layer, blob, _gunzipped(blob), spool, work)
        elif magic == _ZSTD:
            _unpack(layer, blob, _unzstd(blob), spool, work)
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
        except _BrokenError as error:
            blob.check()  # when the blob is not what it should be, that is what is wrong
            raise ImageFormatError(f"the layer's compression is broken: {error}", field="layer") from None
    blob.check()
    inner.check()


class _BrokenError(Exception):
    """What a decompressor says of its input."""


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


def _gunzipped(blob: _Blob) -> Generator[bytes, None, None]:
    """The members of a gzip file, one after the other; at most a chunk at a time, however well it was compressed."""
    data = blob.read(_COMPRESSED_CHUNK)
    try:
        while data:
            if len(data) < _GZIP_HEADER:
                data += blob.read(_COMPRESSED_CHUNK)  # ISA-L does not take some headers in pieces
            stream = IgzipDecompressor(DECOMP_GZIP)
            while not stream.eof:
                if stream.needs_input and not data:
                    data = blob.read(_COMPRESSED_CHUNK)
                    if not data:
                        raise _BrokenError("it ends in the middle")
                chunk, data = stream.decompress(data, _CHUNK), b""
                yield chunk
            data = stream.unused_data or blob.read(_COMPRESSED_CHUNK)
    except IsalError as error:  # type: ignore[misc]  # a class, whatever its stub says
        raise _BrokenError(str(error)) from None


def _unzstd(blob: _Blob) -> Generator[bytes, None, None]:
    """What the program zstd makes of a blob, which a thread feeds to it."""
    argv = ["zstd", "--decompress", "--stdout", "--quiet"]
    try:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        hint = "install zstd (Debian: apt install zstd); `alcove doctor` shows what is missing"
        raise MachineError(
            "the program zstd, which this image's layers need, is missing", hint=hint, code="E48"
        ) from None
    feeder = threading.Thread(target=_feed, args=(blob, process.stdin), name="zstd")
    with process:
        try:
            feeder.start()
            yield from _chunks(process.stdout)
            errors = process.stderr.read() if process.stderr else b""
        except BaseException:
            process.kill()
            raise
        finally:
            feeder.join()
    if process.returncode:
        reason = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise _BrokenError("".join(reason).removeprefix("zstd: "))


def _feed(blob: _Blob, pipe: IO[bytes] | None) -> None:
    with suppress(OSError, _StoppedError), pipe or open(os.devnull, "wb") as out:  # noqa: PTH123  # who stopped it knows why
        while chunk := blob.read(_COMPRESSED_CHUNK):
            out.write(chunk)


def _chunks(file: IO[bytes] | None) -> Iterator[bytes]:
    while file and (chunk := file.read(_CHUNK)):
        yield chunk
