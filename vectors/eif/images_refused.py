"""Vectors of whole images that no reader may take (eif.md §1, §6, §8), each with one fault."""

from __future__ import annotations

from vectors.collection import Collection
from vectors.eif.images import SMALL, Made, with_header
from vectors.eif.layout import (
    BODY,
    CMDLINE,
    KERNEL,
    METADATA,
    OFFSETS,
    PLAIN,
    SIGNATURE,
    SIZES,
    image,
    patched,
    start,
    summed,
    u16,
    u64,
)

vector = Collection("image")


def refused(data: bytes, field: str, offset: int | None = None) -> Made:
    """An image that no reader takes, and where its fault is."""
    return data, {"expect": "refused", "field": field, "offset": offset}


@vector
def empty_file() -> Made:
    """A file without a byte."""
    return refused(b"", "header", 0)


@vector
def header_cut() -> Made:
    """A header that lacks its last byte."""
    return refused(image(*PLAIN)[: BODY - 1], "header", 0)


@vector
def magic() -> Made:
    """The magic number is ELF's."""
    return refused(with_header(0, b"\x7fELF"), "magic", 0)


@vector
def version_1() -> Made:
    """Version 1 was never public."""
    return refused(with_header(4, u16(1)), "version", 4)


@vector
def version_5() -> Made:
    """Version 5 is not defined."""
    return refused(with_header(4, u16(5)), "version", 4)


@vector
def sections_1() -> Made:
    """One section, where kernel and command line are two."""
    return refused(image(PLAIN[0]), "num_sections", 0x1A)


@vector
def sections_33() -> Made:
    """More sections than the header has room for."""
    return refused(with_header(0x1A, u16(33)), "num_sections", 0x1A)


@vector
def sections_too_many() -> Made:
    """The header counts a sixth section, whose offset is zero."""
    return refused(with_header(0x1A, u16(6)), "section_offsets[5]", OFFSETS + 40)


@vector
def offset_in_the_header() -> Made:
    """The first section begins inside the header."""
    return refused(with_header(OFFSETS, u64(BODY - 1)), "section_offsets[0]", OFFSETS)


@vector
def offset_overlap() -> Made:
    """The second section begins inside the first."""
    return refused(with_header(OFFSETS + 8, u64(BODY + 6)), "section_offsets[1]", OFFSETS + 8)


@vector
def offset_past_the_end() -> Made:
    """The last section begins at the end of the file."""
    data = image(*PLAIN)
    place = OFFSETS + 8 * 4
    return refused(summed(patched(data, place, u64(len(data)))), "section_offsets[4]", place)


@vector
def offset_largest() -> Made:
    """The last section begins at 2^64 - 1: offset and size together leave 64 bits."""
    place = OFFSETS + 8 * 4
    return refused(with_header(place, u64((1 << 64) - 1)), "section_offsets[4]", place)


@vector
def offsets_descending() -> Made:
    """The header lists the last two sections in another order than the file has them."""
    data = image(*PLAIN)
    for array, value in ((OFFSETS, start), (SIZES, lambda index, *plain: len(plain[index][1]))):
        for here, there in ((3, 4), (4, 3)):
            data = patched(data, array + 8 * here, u64(value(there, *PLAIN)))
    return refused(summed(data), "section_offsets[3]", OFFSETS + 24)


@vector
def size_past_the_end() -> Made:
    """The last section is one byte longer than the file, in the array and in its own header."""
    place = start(4, *PLAIN) + 4
    data = patched(image(*PLAIN), SIZES + 32, u64(9))
    return refused(summed(patched(data, place, u64(9))), "section_size", place)


@vector
def size_largest() -> Made:
    """The last section is 2^64 - 1 bytes long, in the array and in its own header."""
    place = start(4, *PLAIN) + 4
    data = patched(image(*PLAIN), SIZES + 32, b"\xff" * 8)
    return refused(summed(patched(data, place, b"\xff" * 8)), "section_offsets[4]", OFFSETS + 32)


@vector
def section_header_cut() -> Made:
    """The file ends inside the last section's header."""
    return refused(image(*PLAIN)[: start(4, *PLAIN) + 11], "section_offsets[4]", OFFSETS + 32)


@vector
def data_cut() -> Made:
    """The file ends inside the last section's data."""
    return refused(image(*PLAIN)[:-1], "section_size", start(4, *PLAIN) + 4)


@vector
def type_0() -> Made:
    """A section of type 0, which is invalid."""
    return refused(summed(patched(image(*PLAIN), start(3, *PLAIN), u16(0))), "section_type", start(3, *PLAIN))


@vector
def type_6() -> Made:
    """A section of type 6, which is not defined."""
    return refused(summed(patched(image(*PLAIN), start(3, *PLAIN), u16(6))), "section_type", start(3, *PLAIN))


def _duplicate(kind: int) -> Made:
    extra = next((section for section in PLAIN if section[0] == kind), (kind, b"\x80"))
    sections = (*PLAIN, *[extra] * (2 if kind == SIGNATURE else 1))
    return refused(image(*sections), "sections", start(len(sections) - 1, *sections))


@vector
def kernel_twice() -> Made:
    """Two kernels."""
    return _duplicate(KERNEL)


@vector
def cmdline_twice() -> Made:
    """Two command lines."""
    return _duplicate(CMDLINE)


@vector
def metadata_twice() -> Made:
    """Two metadata sections."""
    return _duplicate(METADATA)


@vector
def signature_twice() -> Made:
    """Two signature sections."""
    return _duplicate(SIGNATURE)


@vector
def kernel_missing() -> Made:
    """No kernel."""
    return refused(image(*PLAIN[1:]), "sections", 0x1A)


@vector
def cmdline_missing() -> Made:
    """No command line."""
    return refused(image(PLAIN[0], *PLAIN[2:]), "sections", 0x1A)


@vector
def signature_in_version_2() -> Made:
    """A signature section before there were any."""
    sections = (*SMALL, (SIGNATURE, b"\x80"))
    return refused(image(*sections, version=2), "sections", start(3, *sections))


@vector
def signature_too_long() -> Made:
    """A signature section of one byte more than 32768."""
    sections = (*PLAIN, (SIGNATURE, bytes(32769)))
    return refused(image(*sections), "section_size", start(5, *sections) + 4)


@vector
def ramdisk_before_kernel() -> Made:
    """A ramdisk before the kernel."""
    return refused(image(PLAIN[3], *PLAIN[:3], PLAIN[4]), "sections", BODY)
