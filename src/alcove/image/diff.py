"""Why two images measure differently: every difference, and the registers that it moves.

1. both are measured
2. headers and the order of the sections are held against each other
3. sections that differ in a byte are taken apart, each in its own terms (`difference`, `diff_ramdisk`)
4. where nothing was found, the files themselves

Registers follow from sections (eif.md §2). Bytes that only crossed a border between two of them change what boots and
move PCR1 or PCR2, or nothing at all; that is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from alcove.errors import ImageFormatError, InputError
from alcove.image.contents import MAX_UNPACKED, Item, items
from alcove.image.diff_ramdisk import compare_ramdisks
from alcove.image.difference import (
    CERTIFICATE_PCRS,
    Difference,
    compare_cmdlines,
    compare_headers,
    compare_metadata,
    compare_signatures,
    kernel_version,
)
from alcove.image.explain import labelled, measured_into
from alcove.image.format import SectionType
from alcove.image.measure import Measurer
from alcove.image.reader import CHUNK, Eif, Section, chunks, measure_eif, read_at, read_eif, read_section
from alcove.image.signature import parse_section
from alcove.image.signing import certificate_der
from alcove.types import Measurements


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two images, read and measured."""

    file: BinaryIO
    eif: Eif
    sections: dict[str, Section]
    measurements: Measurements
    checksum_holds: bool

    @classmethod
    def read(cls, file: BinaryIO) -> Side:
        """Measure the image in `file`.

        Raises:
            ImageFormatError: When its structure is not sound.
        """
        eif = read_eif(file, lenient=True)
        measurer, crc = measure_eif(file, eif)
        measured = _with_certificate(file, eif, measurer)
        return cls(file, eif, dict(labelled(eif)), measured, crc == eif.header.eif_crc32)

    def chunks(self, label: str) -> Iterator[bytes]:
        """The data of the section of that name."""
        section = self.sections[label]
        return chunks(self.file, section.data_offset, section.size)

    def data(self, label: str) -> bytes:
        """The same of a small section, in one piece."""
        return read_section(self.file, self.sections[label])

    def items(self, label: str, limit: int) -> Iterator[Item]:
        """The members of the ramdisk of that name."""
        return items(self.chunks(label), limit)


def _with_certificate(file: BinaryIO, eif: Eif, measurer: Measurer) -> Measurements:
    section = eif.find(SectionType.SIGNATURE)
    try:
        return measurer.measurements(certificate_der(parse_section(read_section(file, section)).certificate))
    except InputError:  # unsigned, or signed with something that is no certificate
        return measurer.measurements()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two images held against each other; the differences come while they are found."""

    a: Measurements
    b: Measurements
    differences: Iterator[Difference]

    def registers(self) -> dict[str, dict[str, Any]]:
        """Both values of PCR0, PCR1, PCR2 and PCR8, and whether they are the same."""
        found = {}
        for index in (0, 1, 2, 8):
            old, new = (getattr(side, f"pcr{index}") for side in (self.a, self.b))
            texts = {name: value and value.hex() for name, value in (("a", old), ("b", new))}
            found[f"PCR{index}"] = {"same": old == new} | texts
        return found


def diff_images(a: Path, b: Path, stack: ExitStack, limit: int = MAX_UNPACKED) -> Comparison:
    """Compare the images at `a` and `b`.

    Args:
        a: The one image.
        b: The other.
        stack: Closes the files after the differences were taken.
        limit: Bytes that the compressed parts of a ramdisk may unpack to.

    Raises:
        InputError: E19 when one cannot be read.
        ImageFormatError: E35 when one is not an image.
    """
    one, other = (_open(path, stack) for path in (a, b))
    return Comparison(one.measurements, other.measurements, diff(one, other, limit))


def _open(path: Path, stack: ExitStack) -> Side:
    try:
        return Side.read(stack.enter_context(path.open("rb")))
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror}", code="E19") from error
    except ImageFormatError as error:
        raise ImageFormatError(f"`{path}`: {error.message}", hint=error.hint) from None


def diff(a: Side, b: Side, limit: int = MAX_UNPACKED) -> Iterator[Difference]:
    """The differences, in the order of the recipe.

    Raises:
        ImageFormatError: When a file changes while it is read, or a ramdisk has too many members to compare.
    """
    found = False
    for difference in chain(compare_headers(a.eif.header, b.eif.header), _layout(a, b), _sections(a, b, limit)):
        found = True
        yield difference
    offset = None if found else first_difference(chunks(a.file, 0, a.eif.size), chunks(b.file, 0, b.eif.size))
    if offset is not None:
        what = f"from byte {offset} of the file on, in what no section holds"
        yield Difference("layout", what, detail={"first_difference": offset})


def _sections(a: Side, b: Side, limit: int) -> Iterator[Difference]:
    moved: set[int] = set()
    for label in a.sections | b.sections:
        if label not in a.sections or label not in b.sections:
            found = _one_sided(a, b, label)
            moved |= set(found.pcrs)
            yield found
        elif (offset := first_difference(a.chunks(label), b.chunks(label))) is not None:
            moved |= set(measured_into(label))
            yield from _section(a, b, label, offset, limit)
    yield from _unmoved(a, b, moved)


def _layout(a: Side, b: Side) -> Iterator[Difference]:
    old, new = ([label for label in side.sections if label in a.sections and label in b.sections] for side in (a, b))
    if old != new:
        what = f"the sections come in another order: {', '.join(old)} → {', '.join(new)}"
        yield Difference("layout", what, detail={"a": old, "b": new})
    for name, side, other in (("A", a, b), ("B", b, a)):
        for warning in side.eif.warnings:
            if warning not in other.eif.warnings:
                yield Difference("layout", f"only {name}: {warning}", detail={"only": name.lower()})
        if not side.checksum_holds and other.checksum_holds:
            yield Difference("layout", f"only {name}: the checksum is wrong", detail={"only": name.lower()})


def _one_sided(a: Side, b: Side, label: str) -> Difference:
    name, side = ("A", a) if label in a.sections else ("B", b)
    size = side.sections[label].size
    pcrs = CERTIFICATE_PCRS if label == "signature" else measured_into(label)
    return Difference(label, f"only {name} has it ({size} bytes)", pcrs, {"only": name.lower(), "size": size})


def _section(a: Side, b: Side, label: str, offset: int, limit: int) -> Iterator[Difference]:
    """The differences of a section that both have, and whose first differing byte is at `offset`."""
    pcrs = measured_into(label)
    if label == "kernel":
        yield _kernels(a, b, pcrs, offset)
    elif label == "cmdline":
        yield from compare_cmdlines(a.data(label), b.data(label), pcrs)
    elif label == "metadata":
        yield from compare_metadata(a.data(label), b.data(label))
    elif label == "signature":
        yield from compare_signatures(a.data(label), b.data(label))
    else:
        yield from _ramdisks(a, b, label, offset, limit)


def _kernels(a: Side, b: Side, pcrs: tuple[int, ...], offset: int) -> Difference:
    detail: dict[str, Any] = {"first_difference": offset}
    texts = []
    for name, side in (("a", a), ("b", b)):
        section = side.sections["kernel"]
        digest = hashlib.sha384()
        for chunk in side.chunks("kernel"):
            digest.update(chunk)
        version = kernel_version(read_at(side.file, section.data_offset, min(section.size, 32 * CHUNK)))
        detail[name] = {"sha384": digest.hexdigest(), "size": section.size, "version": version}
        texts.append(f"{version or 'unknown version'}, {section.size} bytes, sha384:{digest.hexdigest()}")
    return Difference("kernel", f"{' → '.join(texts)}; from byte {offset} on", pcrs, detail)


def _ramdisks(a: Side, b: Side, label: str, offset: int, limit: int) -> Iterator[Difference]:
    pcrs = measured_into(label)
    found = False
    try:
        for difference in compare_ramdisks(label, pcrs, a.items(label, limit), b.items(label, limit)):
            found = True
            yield difference
    except ImageFormatError as error:
        what = f"from byte {offset} on; the files cannot be listed: {error.message}"
        yield Difference(label, what, pcrs, {"change": "unreadable", "first_difference": offset})
        return
    if not found:
        what = f"from byte {offset} on, outside of the members: compression, padding or the trailer"
        yield Difference(label, what, pcrs, {"change": "outside", "first_difference": offset})


def _unmoved(a: Side, b: Side, moved: set[int]) -> Iterator[Difference]:
    """Registers that stayed although a section that they measure changed: bytes crossed a border (eif.md §2)."""
    for index in sorted(moved):
        old, new = (getattr(side.measurements, f"pcr{index}") for side in (a, b))
        if old == new and old is not None:
            what = f"PCR{index} is the same: bytes moved from one section into the next, which it does not tell apart"
            yield Difference("layout", what, detail={"unmoved": index})


def first_difference(a: Iterator[bytes], b: Iterator[bytes]) -> int | None:
    """Where two streams differ first, or one ends; None when they are the same."""
    offset = 0
    old = new = b""
    while True:
        old, new = old or next(a, b""), new or next(b, b"")
        size = min(len(old), len(new))
        if old[:size] != new[:size]:
            return offset + next(i for i in range(size) if old[i] != new[i])
        if not size:
            return offset if old or new else None
        offset += size
        old, new = old[size:], new[size:]
