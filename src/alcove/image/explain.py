"""What of an image was measured into which register: every section and every file of the ramdisks, with its digest.

One pass, in constant memory. Sections are shown with SHA-384, which is what the registers extend (eif.md §2); files
with SHA-256, which is what people compare.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from alcove.errors import ImageFormatError, InputError
from alcove.image.contents import MAX_UNPACKED, Item, ItemReader, is_device, item_json, printable
from alcove.image.format import SectionType
from alcove.image.measure import Measurer
from alcove.image.reader import Eif, Section, chunks, read_eif, read_section
from alcove.image.signature import parse_section
from alcove.image.signing import certificate_der


@dataclass(frozen=True, slots=True)
class SectionBegin:
    """A section; what follows up to its `SectionEnd` is in it."""

    label: str
    section: Section
    pcrs: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As one object of `eif explain --json`."""
        place = {"offset": self.section.data_offset, "size": self.section.size}
        return {"kind": "section", "section": self.label, "pcrs": list(self.pcrs)} | place

    def text(self) -> str:
        """As a line."""
        into = " and ".join(f"PCR{index}" for index in self.pcrs) or "no register"
        return f"{self.label}: {self.section.size} bytes at offset {self.section.data_offset}, measured into {into}"


@dataclass(frozen=True, slots=True)
class RamdiskItem:
    """A member of a ramdisk."""

    label: str
    item: Item

    def to_json(self) -> dict[str, Any]:
        """As one object of `eif explain --json`."""
        return {"kind": "member", "section": self.label} | item_json(self.item)

    def text(self) -> str:
        """As a line, like that of `ls -l`."""
        member = self.item.member
        when = datetime.fromtimestamp(member.mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        digest = f" sha256:{self.item.sha256.hex()}" if self.item.sha256 is not None else ""
        target = f" -> {printable(self.item.target)}" if stat.S_ISLNK(member.mode) else ""
        device = f" {member.rdev[0]}:{member.rdev[1]}" if is_device(member.mode) else f" {member.size}"
        mode = stat.filemode(member.mode)
        return f"  {mode} {member.uid}:{member.gid}{device} {when}{digest} {printable(member.name)}{target}"


@dataclass(frozen=True, slots=True)
class SectionEnd:
    """The end of a section: the digest of its data, and why a ramdisk could not be read to its end."""

    label: str
    sha384: bytes
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As one object of `eif explain --json`."""
        return {"kind": "digest", "section": self.label, "sha384": self.sha384.hex(), "problem": self.problem}

    def text(self) -> str:
        """As a line, or two."""
        problem = f"  its files cannot be listed: {self.problem}\n" if self.problem else ""
        return f"{problem}  sha384:{self.sha384.hex()}"


@dataclass(frozen=True, slots=True)
class Register:
    """A register and what was measured into it, in that order."""

    index: int
    value: bytes
    parts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As one object of `eif explain --json`."""
        return {"kind": "register", "pcr": self.index, "value": self.value.hex(), "of": list(self.parts)}

    def text(self) -> str:
        """As a line."""
        return f"PCR{self.index} {self.value.hex()} of {' + '.join(self.parts) or 'nothing'}"


Line: TypeAlias = SectionBegin | RamdiskItem | SectionEnd | Register


def explain(file: BinaryIO, eif: Eif, limit: int = MAX_UNPACKED) -> Iterator[Line]:
    """Everything that the image measures: its sections in file order, then the registers.

    Args:
        file: The image.
        eif: Its structure.
        limit: Bytes that the compressed parts of a ramdisk may unpack to.

    Raises:
        ImageFormatError: When the file changes while it is read.
    """
    measurer = Measurer()
    parts: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for label, section in labelled(eif):
        begin = SectionBegin(label, section, measured_into(label))
        yield begin
        for index in begin.pcrs:
            parts[index].append(label)
        measurer.section(section.type)
        yield from _section(file, begin, measurer, limit)
    der = _certificate(file, eif)
    measured = measurer.measurements(der)
    values = {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2}
    yield from (Register(index, value, tuple(parts[index])) for index, value in values.items())
    if measured.pcr8 is not None:
        yield Register(8, measured.pcr8, ("signing certificate (DER)",))


def _section(file: BinaryIO, begin: SectionBegin, measurer: Measurer, limit: int) -> Iterator[Line]:
    section = begin.section
    reader = ItemReader(limit) if section.type is SectionType.RAMDISK else None
    digest = hashlib.sha384()
    problem: str | None = None
    for chunk in chunks(file, section.data_offset, section.size):
        digest.update(chunk)
        measurer.update(chunk)
        if reader is not None and problem is None:
            try:
                for item in reader.receive(chunk):
                    yield RamdiskItem(begin.label, item)
            except ImageFormatError as error:
                problem = error.message
    if reader is not None and problem is None:
        problem = _closing_problem(reader)
    yield SectionEnd(begin.label, digest.digest(), problem)


def _closing_problem(reader: ItemReader) -> str | None:
    try:
        reader.close()
    except ImageFormatError as error:
        return error.message
    return None


def _certificate(file: BinaryIO, eif: Eif) -> bytes | None:
    """DER of the signing certificate; None when the image has none that can be read."""
    section = eif.find(SectionType.SIGNATURE)
    try:
        return certificate_der(parse_section(read_section(file, section)).certificate) if section else None
    except InputError:
        return None


def explained(path: Path, limit: int = MAX_UNPACKED) -> Iterator[Line]:
    """The same for the image at `path`.

    Raises:
        InputError: E19 when it cannot be read.
        ImageFormatError: E35 when its structure is not sound.
    """
    try:
        with path.open("rb") as file:
            yield from explain(file, read_eif(file, lenient=True), limit)
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror}", code="E19") from error


def explain_eif(path: Path, limit: int = MAX_UNPACKED) -> Iterator[str]:
    """The same as lines for people; raises as `explained`."""
    for line in explained(path, limit):
        yield from line.text().split("\n")


def labelled(eif: Eif) -> Iterator[tuple[str, Section]]:
    """The sections in file order with their names: `kernel`, `ramdisk 0` and so on."""
    ramdisks = 0
    for section in eif.sections:
        if section.type is SectionType.RAMDISK:
            yield f"ramdisk {ramdisks}", section
            ramdisks += 1
        else:
            yield section.type.name.lower(), section


def measured_into(label: str) -> tuple[int, ...]:
    """The registers that the section of this name moves (eif.md §2)."""
    if label in ("kernel", "cmdline", "ramdisk 0"):
        return (0, 1)
    return (0, 2) if label.startswith("ramdisk ") else ()
