"""A container image, wherever it came from: what it says of itself, and its file system as one tree."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Final, Protocol

from alcove.errors import ImageFormatError
from alcove.image.lanes import COPIED, PIECE, Chunk, buffers
from alcove.image.sources.limits import Limits
from alcove.image.sources.sparse import expanded
from alcove.image.sources.tree import Data, Node

PLATFORMS: Final = {"x86_64": "amd64", "aarch64": "arm64"}  # eif.md §7.6
ARCHITECTURES: Final = {theirs: ours for ours, theirs in PLATFORMS.items()}

OnBytes = Callable[[str, int, int | None], None]  # stage, bytes done, bytes there are when that is known

_OPEN_FILES: Final = 64  # a process may have 1024


def silent(_stage: str, _done: int, _total: int | None) -> None:
    """Progress that nobody watches."""


class ContainerImage(Protocol):
    """What `build-enclave` needs of an image."""

    @property
    def digest(self) -> str:
        """Of the configuration: what Docker calls the image's id."""

    @property
    def config(self) -> dict[str, Any]:
        """The image's configuration (OCI image specification, "config.md")."""

    @property
    def settings(self) -> dict[str, Any]:
        """The `config` object in it: Cmd, Entrypoint, Env and the like."""

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Digests of the unpacked layers."""

    def flatten(self, directory: Path, limits: Limits, on_bytes: OnBytes) -> Flattened:
        """The file system; temporary files go to `directory`."""


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """The `config` object of a configuration; empty when there is none."""
    settings = config.get("config") or {}
    return settings if isinstance(settings, dict) else {}


class Flattened:
    """A tree, and the files that its data is in: one for each layer, or one for each file of a directory.

    Args:
        root: The tree.
        spools: The files; a node's data has the number of one.
        flags: For opening them, beside O_RDONLY.
    """

    def __init__(self, root: Node, spools: Sequence[Path | bytes], flags: int = 0) -> None:
        self.root = root
        self._spools = spools
        self._flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags
        self._descriptors: dict[int, int] = {}
        self._buffers = buffers()
        weakref.finalize(self, _close, self._descriptors)

    def read(self, data: Data) -> Iterator[bytes]:
        """The content of a file in chunks.

        Raises:
            ImageFormatError: When it can no longer be read.
        """
        return map(bytes, self._content(data, repeat(memoryview(bytearray(min(data.size, PIECE))))))

    def lend(self, data: Data) -> Iterable[Chunk]:
        """As `read`, but large chunks are in memory that is used again.

        A chunk of `COPIED` bytes or more holds until `WINDOW` more such have been given, of this file or another;
        smaller ones, which `gathered` copies, hold for ever. New memory for each would cost as much as the copy into
        it, for the kernel clears its pages.
        """
        return self._content(data, self._buffers)

    def _content(self, data: Data, room: Iterator[memoryview]) -> Iterable[Chunk]:
        if data.pieces is not None:
            return self._expanded(data, room)
        if data.size < COPIED:
            return (self._small(data.spool, data.offset, data.size),)
        return self._stored(data.spool, data.offset, data.size, room)

    def _expanded(self, data: Data, room: Iterator[memoryview]) -> Iterator[Chunk]:
        """A sparse file with its holes."""
        offset = data.offset
        for is_stored, size in expanded(data.pieces or (), data.size):
            if is_stored:
                yield from self._stored(data.spool, offset, size, room)
                offset += size
            else:
                yield from _zeros(size)

    def _stored(self, spool: int, offset: int, size: int, room: Iterator[memoryview]) -> Iterator[Chunk]:
        while size >= COPIED:
            buffer = next(room)[:size]
            self._fill(buffer, spool, offset)
            yield buffer
            offset += len(buffer)
            size -= len(buffer)
        if size:
            yield self._small(spool, offset, size)

    def _small(self, spool: int, offset: int, size: int) -> bytes:
        content = b""
        while len(content) < size:
            try:
                more = os.pread(self._descriptor(spool), size - len(content), offset + len(content))
            except OSError as error:
                raise self._unreadable(spool, str(error.strerror)) from None
            if not more:
                raise self._unreadable(spool, "it became shorter")
            content += more  # the first time this copies nothing
        return content

    def _fill(self, buffer: memoryview, spool: int, offset: int) -> None:
        while buffer:
            try:
                count = os.preadv(self._descriptor(spool), [buffer], offset)
            except OSError as error:
                raise self._unreadable(spool, str(error.strerror)) from None
            if not count:
                raise self._unreadable(spool, "it became shorter")
            buffer = buffer[count:]
            offset += count

    def _descriptor(self, spool: int) -> int:
        descriptor = self._descriptors.get(spool)
        if descriptor is None:
            if len(self._descriptors) >= _OPEN_FILES:
                _close(self._descriptors)
            descriptor = self._descriptors[spool] = os.open(self._spools[spool], self._flags)
        return descriptor

    def _unreadable(self, spool: int, reason: str) -> ImageFormatError:
        path = os.fsdecode(self._spools[spool])
        return ImageFormatError(f"{path} cannot be read: {reason}", field="content")


def _close(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _zeros(size: int) -> Iterator[bytes]:
    block = bytes(min(size, PIECE))
    while size:
        yield block[:size]
        size -= min(size, PIECE)
