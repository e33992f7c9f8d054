"""Ramdisks and whole images for the tests that look into them."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from alcove.codec import cpio
from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.format import SectionType
from alcove.image.metadata import ImageMetadata

METADATA = ImageMetadata("app", "1.0", {"BuildTime": "2026"}, {"Id": "sha256:0"}, None)
BOOT = (cpio.directory(b"dev"), cpio.file(b"init", b"init\n", 0o755), cpio.file(b"nsm.ko", b"nsm\n", 0o755))
APPLICATION = (
    cpio.directory(b"rootfs"),
    cpio.directory(b"rootfs/bin/"),
    cpio.file(b"rootfs/bin/sh", b"shell", 0o755),
    cpio.symlink(b"rootfs/bin/ls", b"sh", 0o777),
    cpio.Entry(b"rootfs/tmp/", stat.S_IFDIR | 0o1777, mtime=1700000000),
    cpio.directory(b"rootfs"),
    cpio.directory(b"rootfs/tmp"),
    cpio.file(b"cmd", b"/bin/sh\n"),
    cpio.file(b"env", b"A=b\n"),
)


def archive(*entries: cpio.Entry) -> bytes:
    """The archive of some entries."""
    return b"".join(cpio.archive(entries))


def write(
    path: Path,
    *ramdisks: bytes,
    kernel: bytes = b"kernel",
    cmdline: bytes = b"console=ttyS0 quiet",
    metadata: bytes = METADATA.pack(),
    flags: int = 0,
    order: Sequence[int] = (0, 1, 2),
) -> Path:
    """An image of these parts; two sound ramdisks when none are given."""
    head = [
        NewSection(SectionType.KERNEL, (kernel,)),
        NewSection(SectionType.CMDLINE, (cmdline,)),
        NewSection(SectionType.METADATA, (metadata,)),
    ]
    tail = [NewSection(SectionType.RAMDISK, (data,)) for data in ramdisks or (archive(*BOOT), archive(*APPLICATION))]
    write_eif(path, NewHeader(flags), [head[index] for index in order] + tail)
    return path
