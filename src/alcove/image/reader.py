"""Reads an image without trusting a byte of it: every offset and size is held against the file's length first.

What is refused, and what other readers do instead, is the table in eif.md §6. In order:

1. the header: magic, version, number of sections
2. every section header: where the header's array says, its size the one in the array ¹
3. sections neither overlap nor leave gaps ², and end with the file ²
4. one kernel, one command line, at most one signature and metadata section; ramdisks after the kernel
5. limits: a signature from version 3, of 32768 bytes at most; metadata from version 4 ²

¹ a signature's size may differ (§8 trap 1), any when `lenient`   ² not when `lenient`

What passed although nitro-cli would not write it, reserved bits included, is among the image's `findings`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import BinaryIO, Final, NoReturn, cast

from alcove.errors import ImageFormatError
from alcove.image.format import (
    ARCHITECTURE_FLAG,
    CRC_OFFSET,
    HEADER_SIZE,
    MAX_OFFSET,
    MAX_SIGNATURE,
    SECTION_HEADER_SIZE,
    EifHeader,
    SectionHeader,
    SectionType,
)
from alcove.image.lanes import Piece, buffers, hash_pieces
from alcove.image.measure import Measurer, crc32

CHUNK: Final = 1 << 20
MAX_CMDLINE: Final = 65536  # ours; Linux takes 2048 (COMMAND_LINE_SIZE), and a command line is read into memory
MAX_METADATA: Final = 16 << 20  # ours; metadata is read into memory

_AT_MOST: Final = {
    SectionType.CMDLINE: MAX_CMDLINE,
    SectionType.SIGNATURE: MAX_SIGNATURE,
    SectionType.METADATA: MAX_METADATA,
}


@dataclass(frozen=True, slots=True)
class Section:
    """A section of an image; `offset` is that of its header, `size` the length of its data."""

    type: SectionType
    flags: int
    offset: int
    size: int

    @property
    def data_offset(self) -> int:
        """Where the data begins."""
        return self.offset + SECTION_HEADER_SIZE

    @property
    def end(self) -> int:
        """The offset after the data."""
        return self.data_offset + self.size


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about an image that was tolerated."""

    message: str
    field: str
    offset: int

    def error(self) -> ImageFormatError:
        """The error for who does not tolerate it."""
        return ImageFormatError(self.message, field=self.field, offset=self.offset)

    def __str__(self) -> str:
        return self.error().message


@dataclass(frozen=True, slots=True)
class Eif:
    """An image whose structure was checked; `findings` holds what was tolerated, in file order."""

    header: EifHeader
    sections: tuple[Section, ...]
    size: int
    findings: tuple[Finding, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings as texts."""
        return tuple(str(finding) for finding in self.findings)

    def refuse_findings(self) -> None:
        """Tolerate nothing.

        Raises:
            ImageFormatError: E35 for the first finding, when there is one.
        """
        if self.findings:
            raise self.findings[0].error()

    def find(self, kind: SectionType) -> Section | None:
        """The section of that type, if there is one."""
        return next((section for section in self.sections if section.type is kind), None)

    @property
    def ramdisks(self) -> tuple[Section, ...]:
        """The ramdisks in file order: the boot ramdisk, then the application's."""
        return tuple(section for section in self.sections if section.type is SectionType.RAMDISK)


def read_eif(file: BinaryIO, *, lenient: bool = False) -> Eif:
    """The structure of the image in `file`, by the recipe above.

    Args:
        file: A seekable binary file.
        lenient: Tolerate what the recipe says; what is tolerated is measured by the section headers' sizes.

    Raises:
        ImageFormatError: When a rule is broken; the error carries field and offset.
    """
    size = file.seek(0, os.SEEK_END)
    header = EifHeader.parse(read_at(file, 0, HEADER_SIZE))  # 1
    findings = _Findings(lenient)
    findings.note(*_header_findings(header))
    sections: list[Section] = []
    expected = HEADER_SIZE
    for index in range(header.num_sections):
        findings.fault(_misplaced(header, index, expected))  # 3
        section = _section(file, header, index, size)  # 2
        stale = _stale_size(header, index, section)
        if section.type is SectionType.SIGNATURE:
            findings.note(*stale)
        else:
            findings.fault(stale)
        findings.note(*_section_findings(section))
        sections.append(section)
        expected = section.end
    if expected != size:
        findings.fault([Finding(f"{size - expected} bytes follow the last section", "sections", expected)])
    _check_kinds(header, sections)  # 4, 5
    if header.version >= 4 and all(section.type is not SectionType.METADATA for section in sections):
        findings.fault([Finding("no metadata section, which version 4 demands", "sections", 0x1A)])
    return Eif(header, tuple(sections), size, findings.sorted())


class _Findings:
    """What was found so far; `fault` raises instead unless `lenient`."""

    def __init__(self, lenient: bool) -> None:
        self._lenient = lenient
        self._found: list[Finding] = []

    def note(self, *found: Finding) -> None:
        self._found += found

    def fault(self, found: Iterable[Finding]) -> None:
        for finding in found:
            if not self._lenient:
                raise finding.error()
            self._found.append(finding)

    def sorted(self) -> tuple[Finding, ...]:
        return tuple(sorted(self._found, key=lambda finding: finding.offset))


def _misplaced(header: EifHeader, index: int, expected: int) -> Iterator[Finding]:
    offset, field, place = header.section_offsets[index], f"section_offsets[{index}]", 0x1C + 8 * index
    if offset < expected:
        raise ImageFormatError(f"{offset} overlaps what is before the section", field=field, offset=place)
    if gap := offset - expected:
        yield Finding(f"{offset} leaves a gap of {gap} bytes before the section", field, place)


def _section(file: BinaryIO, header: EifHeader, index: int, file_size: int) -> Section:
    offset, declared = header.section_offsets[index], header.section_sizes[index]
    field = f"section_offsets[{index}]"
    if offset + SECTION_HEADER_SIZE + declared > MAX_OFFSET or offset + SECTION_HEADER_SIZE > file_size:
        message = f"{offset} is outside the image of {file_size} bytes"
        raise ImageFormatError(message, field=field, offset=0x1C + 8 * index)
    inner = SectionHeader.parse(read_at(file, offset, SECTION_HEADER_SIZE), offset)
    section = Section(inner.type, inner.flags, offset, inner.size)
    if section.end > file_size:
        message = f"{inner.size} bytes of data run past the end of the image"
        raise ImageFormatError(message, field="section_size", offset=offset + 4)
    if inner.size > _AT_MOST.get(inner.type, MAX_OFFSET):
        message = f"{inner.size} bytes are too many for a {inner.type.name.lower()} section"
        raise ImageFormatError(message, field="section_size", offset=offset + 4)
    return section


def _stale_size(header: EifHeader, index: int, section: Section) -> Iterator[Finding]:
    declared = header.section_sizes[index]
    if declared != section.size:
        message = f"the header says {declared} bytes, the {section.type.name.lower()} section itself {section.size}"
        if section.type is SectionType.SIGNATURE:
            message += "; nitro-cli writes this when it signs an image again"
        yield Finding(message, f"section_sizes[{index}]", 0x11C + 8 * index)


def _header_findings(header: EifHeader) -> Iterator[Finding]:
    if unknown := header.flags & ~ARCHITECTURE_FLAG:
        yield Finding(f"bits {unknown:#06x} are set, which the format reserves", "flags", 6)
    for value, field, offset in ((header.reserved, "reserved", 0x18), (header.unused, "unused", 0x21C)):
        if value:
            yield Finding(f"{value} instead of 0", field, offset)
    count = header.num_sections
    if any(header.section_offsets[count:]) or any(header.section_sizes[count:]):
        yield Finding("entries after the last section are set", "section_offsets", 0x1C + 8 * count)


def _section_findings(section: Section) -> Iterator[Finding]:
    if section.flags:
        yield Finding(f"{section.flags:#06x} instead of 0 in a section header", "flags", section.offset + 2)


def _check_kinds(header: EifHeader, sections: list[Section]) -> None:
    found = {kind: [section for section in sections if section.type is kind] for kind in SectionType}
    for kind in (SectionType.KERNEL, SectionType.CMDLINE):
        if len(found[kind]) != 1:
            _refuse_sections(f"{len(found[kind])} {kind.name.lower()} sections instead of one", found[kind][1:])
    for kind in (SectionType.SIGNATURE, SectionType.METADATA):
        if len(found[kind]) > 1:
            _refuse_sections(f"more than one {kind.name.lower()} section", found[kind][1:])
    if header.version < 3 and found[SectionType.SIGNATURE]:
        _refuse_sections("a signature section, which version 2 does not have", found[SectionType.SIGNATURE])
    if found[SectionType.RAMDISK] and found[SectionType.RAMDISK][0].offset < found[SectionType.KERNEL][0].offset:
        _refuse_sections("a ramdisk comes before the kernel", found[SectionType.RAMDISK])


def _refuse_sections(message: str, sections: list[Section]) -> NoReturn:
    """Refuse the first of these sections, or the number of them when one is missing."""
    raise ImageFormatError(message, field="sections", offset=sections[0].offset if sections else 0x1A)


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """`size` bytes at `offset`, or fewer at the end of the file."""
    file.seek(offset)
    return file.read(size)


def chunks(file: BinaryIO, offset: int, size: int) -> Iterator[bytes]:
    """The bytes of a file from `offset` on, in chunks of a mebibyte.

    Raises:
        ImageFormatError: When the file ends before `size` bytes.
    """
    while size:
        chunk = read_at(file, offset, min(CHUNK, size))
        if not chunk:
            raise ImageFormatError("the file ended while it was read", field="data", offset=offset)
        yield chunk
        offset += len(chunk)
        size -= len(chunk)


def read_section(file: BinaryIO, section: Section | None) -> bytes:
    """The data of a small section (command line, metadata, signature: bounded by `read_eif`); empty for None."""
    return b"".join(chunks(file, section.data_offset, section.size)) if section else b""


def measure_eif(
    file: BinaryIO, eif: Eif, sink: Callable[[Section, memoryview], object] | None = None
) -> tuple[Measurer, int]:
    """One pass over the image: a measurer that has taken every section, and the CRC-32 of the content.

    The checksum covers the header up to its own field, then every section header and its data in file order; a gap is
    not covered (eif.md §1.3).

    Args:
        file: The image.
        eif: Its structure.
        sink: Gets each chunk of data, in order, with the section it belongs to, so that what is used is what was
            measured. The chunk holds until the sink returns; the sink may be called by another thread.

    Raises:
        ImageFormatError: When the file ends before its last section does.
    """
    crc = crc32(read_at(file, 0, CRC_OFFSET))
    measurer = Measurer()

    def pieces() -> Iterator[Piece]:
        nonlocal crc
        room = buffers()
        for section in eif.sections:
            crc = crc32(read_at(file, section.offset, SECTION_HEADER_SIZE), crc)
            feeds = measurer.section(section.type)
            for chunk in _chunks_into(room, file, section.data_offset, section.size):
                crc = crc32(chunk, crc)
                if sink is not None:
                    sink(section, chunk)
                yield feeds, chunk

    hash_pieces(pieces())
    return measurer, crc


def _chunks_into(room: Iterator[memoryview], file: BinaryIO, offset: int, size: int) -> Iterator[memoryview]:
    """As `chunks`, into buffers that are used again."""
    reader = cast("BufferedIOBase", file)  # typing.BinaryIO has no readinto; every binary file has
    while size:
        reader.seek(offset)
        buffer = next(room)[:size]
        count = reader.readinto(buffer)
        if not count:
            raise ImageFormatError("the file ended while it was read", field="data", offset=offset)
        yield buffer[:count].toreadonly()
        offset += count
        size -= count
