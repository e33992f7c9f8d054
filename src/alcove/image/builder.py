"""Writes an image in one pass: sections stream to a temporary file that takes its name only when it is whole.

    placeholder header → sections, measured and summed on the way → signature over the measured PCR0 → header → rename

The order of sections is nitro-cli's: kernel, command line, metadata, boot ramdisk, application ramdisk, signature
(eif.md §1.2). Constant memory: a ramdisk is an iterator of chunks.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from alcove.errors import ImageFormatError, InputError
from alcove.image.format import (
    CRC_OFFSET,
    CURRENT_VERSION,
    DEFAULT_CPUS,
    DEFAULT_MEMORY,
    HEADER_SIZE,
    MAX_SECTIONS,
    MAX_SIGNATURE,
    SECTION_HEADER_SIZE,
    EifHeader,
    SectionHeader,
    SectionType,
)
from alcove.image.lanes import Chunk, Piece, gathered, hash_pieces
from alcove.image.measure import Measurer, crc32, crc32_joined
from alcove.types import Digest384

_CHUNK: Final = 1 << 20
_WRITE_BACK: Final = 8 << 20  # bytes that are given to the disk at a time: a hash waits when it takes long


@dataclass(frozen=True, slots=True)
class NewSection:
    """A section to write: its data in chunks, of any total length.

    A chunk is used until `WINDOW` more have been taken, and not changed.
    """

    type: SectionType
    data: Iterable[Chunk]
    flags: int = 0


@dataclass(frozen=True, slots=True)
class NewHeader:
    """The fields of the header that do not follow from the sections."""

    flags: int
    version: int = CURRENT_VERSION
    default_mem: int = DEFAULT_MEMORY
    default_cpus: int = DEFAULT_CPUS


def write_eif(
    output: Path,
    header: NewHeader,
    sections: Iterable[NewSection],
    sign: Callable[[Digest384], bytes] | None = None,
) -> Measurer:
    """Write an image to `output`, which holds the old file or the whole new one at every moment.

    Args:
        output: Where the image goes.
        header: Version, flags and the fields nothing reads.
        sections: What the image holds, without the signature.
        sign: Gives the data of the signature section for a measured PCR0; None leaves the image unsigned.

    Returns:
        The measurer that took every section.

    Raises:
        ImageFormatError: When the sections do not fit the format.
        InputError: E19 when the file cannot be written.
    """
    try:
        with replacement(output) as file:
            return _write(file, header, sections, sign)
    except OSError as error:
        raise InputError(f"cannot write `{output}`: {error.strerror}", code="E19") from error


@contextmanager
def replacement(output: Path) -> Iterator[BinaryIO]:
    """A new file beside `output` that replaces it when the block ends well, and is removed when it does not.

    A file that is replaced hands on its permissions; of a symlink it is the target that is replaced. What is there and
    is no file (/dev/null, say) is refused.
    """
    output = target_of(output)
    if output.exists() and not output.is_file():
        raise InputError(f"cannot write `{output}`: it is not a regular file", code="E19")
    mode = stat.S_IMODE(output.stat().st_mode) if output.exists() else 0o666 & ~umask()
    descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(output)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def target_of(path: Path) -> Path:
    """Where a file of that name is in truth, or will be: symlinks followed, one that leads nowhere too."""
    return Path(os.path.realpath(path))


def umask() -> int:
    """What this process takes from the permissions of new files.

    umask(2) tells only who sets another, and other threads make files meanwhile.
    """
    status = Path("/proc/self/status").read_text()  # proc_pid_status(5)
    return int(status.partition("\nUmask:")[2].split()[0], 8)


def _write(
    file: BinaryIO, fields: NewHeader, sections: Iterable[NewSection], sign: Callable[[Digest384], bytes] | None
) -> Measurer:
    body = _Body(file)
    for section in sections:
        body.add(section)
    if sign is not None:
        data = sign(body.measurer.measurements().pcr0)
        if len(data) > MAX_SIGNATURE:
            raise ImageFormatError(
                f"{len(data)} bytes are more than the {MAX_SIGNATURE} of a signature section", field="signature"
            )
        body.add(NewSection(SectionType.SIGNATURE, (data,)))
    header = EifHeader(
        flags=fields.flags,
        num_sections=len(body.offsets),
        section_offsets=_array(body.offsets),
        section_sizes=_array(body.sizes),
        version=fields.version,
        default_mem=fields.default_mem,
        default_cpus=fields.default_cpus,
    ).pack()
    crc = crc32_joined(crc32(header[:CRC_OFFSET]), body.crc, body.position - HEADER_SIZE)
    file.seek(0)
    file.write(header[:CRC_OFFSET] + crc.to_bytes(4, "big"))
    return body.measurer


def _array(values: list[int]) -> tuple[int, ...]:
    return (*values, *[0] * (MAX_SECTIONS - len(values)))


class _Body:
    """The sections of an image as they are written: where they are, their checksum, their measurements."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.measurer = Measurer()
        self.position = HEADER_SIZE
        self.crc = 0
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        self._given = 0  # to the disk: bytes from the start of the file
        file.write(bytes(HEADER_SIZE))

    def add(self, section: NewSection) -> None:
        """Write a section; its header, which holds the size, is filled in when the data has passed."""
        if len(self.offsets) == MAX_SECTIONS:
            raise ImageFormatError(f"more than {MAX_SECTIONS} sections", field="num_sections")
        start = self.position
        self._file.write(bytes(SECTION_HEADER_SIZE))
        feeds = self.measurer.section(section.type)
        size = data_crc = 0

        def pieces() -> Iterator[Piece]:
            nonlocal size, data_crc
            for chunk in gathered(section.data):
                self._file.write(chunk)
                data_crc = crc32(chunk, data_crc)
                size += len(chunk)
                self._write_back(start + size)
                yield feeds, chunk

        hash_pieces(pieces())
        head = SectionHeader(section.type, size, section.flags).pack()
        self._file.seek(start)
        self._file.write(head)
        self.position = self._file.seek(start + SECTION_HEADER_SIZE + size)
        self.crc = crc32_joined(crc32(head, self.crc), data_crc, size)
        self.offsets.append(start)
        self.sizes.append(size)

    def _write_back(self, position: int) -> None:
        """Let the disk take what was written long ago, so that little is left for fsync to wait for.

        Linux starts to write dirty pages when they are said to be of no more use (mm/fadvise.c), and keeps them till
        then. An early fsync would do too, but take the error that the last one must see.
        """
        if position - self._given >= _WRITE_BACK:
            os.posix_fadvise(self._file.fileno(), self._given, position - self._given, os.POSIX_FADV_DONTNEED)
            self._given = position


def file_chunks(path: Path) -> Iterator[bytes]:
    """The content of a file in chunks.

    Raises:
        InputError: E19 when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror}", code="E19") from error
