"""The Enclave Image Format's header and section headers (eif.md §1): syntax only, parse beside pack.

Core: bytes in, headers out; headers in, bytes out. Everything accepted packs to the same bytes.

    header, 548 bytes | section header, 12 bytes | data | section header | data | …

All integers are big-endian. Layout as in aws-nitro-enclaves-image-format `src/defs/mod.rs` (0.5.0).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from alcove.errors import ImageFormatError

_HEADER: Final = struct.Struct(">4sHHQQHH32Q32QII")  # eif.md §1.1, 548 bytes:
# magic version flags default_mem default_cpus reserved num_sections offsets[32] sizes[32] unused crc32
_SECTION: Final = struct.Struct(">HHQ")  # eif.md §1.2, 12 bytes: type flags size

MAGIC: Final = b".eif"
HEADER_SIZE: Final = _HEADER.size
SECTION_HEADER_SIZE: Final = _SECTION.size
CRC_OFFSET: Final = 0x220  # the checksum is the header's last field and covers all before it
VERSIONS: Final = range(2, 5)  # eif.md §1.4: 2, 3 and 4 are accepted by the platform
CURRENT_VERSION: Final = 4
MIN_SECTIONS: Final = 2  # eif.md §1.1
MAX_SECTIONS: Final = 32  # eif.md §1.1, MAX_NUM_SECTIONS
MAX_SIGNATURE: Final = 32768  # eif.md §1.2, SIGNATURE_MAX_SIZE
DEFAULT_MEMORY: Final = 1 << 30  # what nitro-cli writes; nothing reads it
DEFAULT_CPUS: Final = 2  # likewise

ARCHITECTURE_FLAG: Final = 0x0001  # eif.md §1.5, bit 0: clear x86_64, set aarch64
ARCHITECTURES: Final = ("x86_64", "aarch64")
MAX_OFFSET: Final = 1 << 64


class SectionType(IntEnum):
    """What a section holds (eif.md §1.2)."""

    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


@dataclass(frozen=True, slots=True)
class EifHeader:
    """The header of an image; offsets and sizes are the whole arrays of 32, in bytes.

    Raises:
        ImageFormatError: When magic, version, number of sections or array lengths are not the format's.
    """

    flags: int
    num_sections: int
    section_offsets: tuple[int, ...]
    section_sizes: tuple[int, ...]
    eif_crc32: int = 0
    version: int = CURRENT_VERSION
    default_mem: int = DEFAULT_MEMORY
    default_cpus: int = DEFAULT_CPUS
    reserved: int = 0
    unused: int = 0

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise ImageFormatError(f"{self.version} is not a version from 2 to 4", field="version", offset=4)
        if not MIN_SECTIONS <= self.num_sections <= MAX_SECTIONS:
            raise ImageFormatError(f"{self.num_sections} is not from 2 to 32", field="num_sections", offset=0x1A)
        if not len(self.section_offsets) == len(self.section_sizes) == MAX_SECTIONS:
            raise ImageFormatError("the arrays have 32 entries each", field="section_offsets", offset=0x1C)

    @property
    def architecture(self) -> str:
        """`x86_64` or `aarch64`, by bit 0 of the flags."""
        return ARCHITECTURES[self.flags & ARCHITECTURE_FLAG]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The header that `data` begins with.

        Raises:
            ImageFormatError: When it is not one; the error says which field, and where.
        """
        if len(data) < HEADER_SIZE:
            raise ImageFormatError(
                f"{len(data)} bytes are fewer than a header's {HEADER_SIZE}", field="header", offset=0
            )
        magic, version, flags, memory, cpus, reserved, count, *arrays, unused, crc = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise ImageFormatError(f'{magic.hex()} is not ".eif"', field="magic", offset=0)
        offsets, sizes = tuple(arrays[:MAX_SECTIONS]), tuple(arrays[MAX_SECTIONS:])
        return cls(flags, count, offsets, sizes, crc, version, memory, cpus, reserved, unused)

    def pack(self) -> bytes:
        """The header as 548 bytes."""
        return _HEADER.pack(
            *(MAGIC, self.version, self.flags, self.default_mem, self.default_cpus, self.reserved, self.num_sections),
            *self.section_offsets,
            *self.section_sizes,
            *(self.unused, self.eif_crc32),
        )


@dataclass(frozen=True, slots=True)
class SectionHeader:
    """The header of a section; `size` is the length of the data that follows, in bytes."""

    type: SectionType
    size: int
    flags: int = 0

    @classmethod
    def parse(cls, data: bytes, offset: int) -> Self:
        """The section header in `data`, which was read at `offset` of the image.

        Raises:
            ImageFormatError: When it is short, or its type is none of the five.
        """
        if len(data) < SECTION_HEADER_SIZE:
            raise ImageFormatError("the image ends inside a section header", field="section", offset=offset)
        kind, flags, size = _SECTION.unpack_from(data)
        try:
            return cls(SectionType(kind), size, flags)
        except ValueError:
            raise ImageFormatError(f"{kind} is not a type of section", field="section_type", offset=offset) from None

    def pack(self) -> bytes:
        """The section header as 12 bytes."""
        return _SECTION.pack(self.type, self.flags, self.size)
