"""Images made by hand, from nothing but the layout in the README: what the generators change one thing in."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = range(1, 6)
NAMES = {KERNEL: "kernel", CMDLINE: "cmdline", RAMDISK: "ramdisk", SIGNATURE: "signature", METADATA: "metadata"}
OFFSETS, SIZES, CRC, BODY = 0x1C, 0x11C, 0x220, 548

Section = tuple[int, bytes]
INFO = {
    "ImageName": "app",
    "ImageVersion": "1.0",
    "BuildMetadata": {
        "BuildTime": "2026-01-01T00:00:00+00:00",
        "BuildTool": "vectors",
        "BuildToolVersion": "1",
        "OperatingSystem": "Linux",
        "KernelVersion": "6.12.0",
    },
    "DockerInfo": None,
    "CustomMetadata": None,
}
PLAIN: tuple[Section, ...] = (  # in the order that nitro-cli writes
    (KERNEL, b"kernel"),
    (CMDLINE, b"cmdline"),
    (METADATA, json.dumps(INFO, separators=(",", ":")).encode()),
    (RAMDISK, b"ramdisk0"),
    (RAMDISK, b"ramdisk1"),
)


def image(*sections: Section, version: int = 4, flags: int = 0, gap: int = 0) -> bytes:
    """An image; with a gap, that many bytes of ee come before the first section."""
    body, offsets, sizes = b"", [0] * 32, [0] * 32
    for index, (kind, data) in enumerate(sections):
        offsets[index], sizes[index] = BODY + gap + len(body), len(data)
        body += struct.pack(">HHQ", kind, 0, len(data)) + data
    head = struct.pack(">4sHHQQHH", b".eif", version, flags, 1 << 30, 2, 0, len(sections))
    head += struct.pack(">32Q32QI", *offsets, *sizes, 0)
    return head + struct.pack(">I", zlib.crc32(head + body)) + b"\xee" * gap + body


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    """The bytes with others in their place."""
    return data[:offset] + value + data[offset + len(value) :]


def summed(data: bytes) -> bytes:
    """An image without gaps, with the checksum put right."""
    return patched(data, CRC, struct.pack(">I", zlib.crc32(data[:CRC] + data[BODY:])))


def u16(number: int) -> bytes:
    """Two bytes, big-endian."""
    return struct.pack(">H", number)


def u64(number: int) -> bytes:
    """Eight bytes, big-endian."""
    return struct.pack(">Q", number)


def pcr(*contents: bytes) -> str:
    """A register extended once by the digest of the contents, one after the other."""
    return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(contents)).digest()).hexdigest()


def registers(*sections: Section) -> dict[str, object]:
    """PCR0, PCR1 and PCR2 of an image with these sections."""
    ramdisks = [data for kind, data in sections if kind == RAMDISK]
    head = [data for kind, data in sections if kind in (KERNEL, CMDLINE)]
    return {"pcr0": pcr(*head, *ramdisks), "pcr1": pcr(*head, *ramdisks[:1]), "pcr2": pcr(*ramdisks[1:])}


def table(*sections: Section, gap: int = 0) -> list[str]:
    """A line a section: its name, the offset of its header, the size of its data."""
    lines, offset = [], BODY + gap
    for kind, data in sections:
        lines.append(f"{NAMES[kind]} {offset} {len(data)}")
        offset += 12 + len(data)
    return lines


def start(index: int, *sections: Section) -> int:
    """Where the header of a section is."""
    return BODY + sum(12 + len(data) for _, data in sections[:index])
