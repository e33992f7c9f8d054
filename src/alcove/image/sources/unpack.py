"""Unpacks the layers of a container image: gzip in this process, zstd by the program of that name.

Everything comes in pieces of at most 1 MiB, whatever the input claims.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from queue import SimpleQueue
from typing import IO, Final

from isal.igzip_lib import DECOMP_GZIP, IgzipDecompressor, IsalError

from alcove.errors import MachineError

GZIP: Final = b"\x1f\x8b"  # RFC 1952 §2.3.1
ZSTD: Final = b"\x28\xb5\x2f\xfd"  # RFC 8878 §3.1.1

_CHUNK: Final = 1 << 20
_INPUT: Final = 1 << 17  # what a gzip member leaves of it is copied for the next
_HEADER: Final = 1 << 12  # a gzip member's header is shorter
_AHEAD: Final = 4  # pieces that wait

Read = Callable[[int], bytes]  # at most so many bytes of the blob; none at its end


class BrokenError(Exception):
    """What a decompressor says of its input."""


class StoppedError(Exception):
    """Nobody waits for the layers any more."""


def ahead(pieces: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """The same pieces, made by a thread of their own: one core makes them, while another works with those before.

    Its errors come out here. When this generator is closed early, the other is too, and the thread has ended.
    """
    made: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
    room, closed = threading.Semaphore(_AHEAD), threading.Event()

    def make() -> None:
        try:
            with closing(pieces):
                for piece in pieces:
                    room.acquire()
                    if closed.is_set():
                        return
                    made.put(piece)
            made.put(None)
        except BaseException as error:  # noqa: BLE001  # raised again by who waits
            made.put(error)

    thread = threading.Thread(target=make, name="unpack")
    if not _started(thread):
        yield from pieces
        return
    try:
        while (piece := made.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            room.release()
    finally:
        closed.set()
        room.release()
        thread.join()


def _started(thread: threading.Thread) -> bool:
    try:
        thread.start()
    except RuntimeError:  # a container's limit on processes counts threads
        return False
    return True


def gunzipped(read: Read) -> Generator[bytes, None, None]:
    """The members of a gzip file, one after the other; at most a chunk at a time, however well it was compressed."""
    data = read(_INPUT)
    try:
        while data:
            if len(data) < _HEADER:
                data += read(_INPUT)  # ISA-L does not take some headers in pieces
            stream = IgzipDecompressor(DECOMP_GZIP)
            while not stream.eof:
                if stream.needs_input and not data:
                    data = read(_INPUT)
                    if not data:
                        raise BrokenError("it ends in the middle")
                chunk, data = stream.decompress(data, _CHUNK), b""
                yield chunk
            data = stream.unused_data or read(_INPUT)
    except IsalError as error:  # type: ignore[misc]  # a class, whatever its stub says
        raise BrokenError(str(error)) from None


def unzstd(read: Read) -> Generator[bytes, None, None]:
    """What the program zstd makes of a blob, which a thread feeds to it."""
    argv = ["zstd", "--decompress", "--stdout", "--quiet"]
    try:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        hint = "install zstd (Debian: apt install zstd); `alcove doctor` shows what is missing"
        raise MachineError(
            "the program zstd, which this image's layers need, is missing", hint=hint, code="E48"
        ) from None
    feeder = threading.Thread(target=_feed, args=(read, process.stdin), name="zstd")
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
        raise BrokenError("".join(reason).removeprefix("zstd: "))


def _feed(read: Read, pipe: IO[bytes] | None) -> None:
    with suppress(OSError, StoppedError), pipe or open(os.devnull, "wb") as out:  # noqa: PTH123  # who stopped it knows why
        while chunk := read(_INPUT):
            out.write(chunk)


def _chunks(file: IO[bytes] | None) -> Iterator[bytes]:
    while file and (chunk := file.read(_CHUNK)):
        yield chunk
