"""A small enclave image for commands that look at images; it measures and signs like any other."""

from __future__ import annotations

from pathlib import Path

from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.format import SectionType

METADATA = b"""{
  "ImageName": "app", "ImageVersion": "1", "BuildMetadata": {
    "BuildTime": "2026-01-01T00:00:00+00:00", "BuildTool": "t", "BuildToolVersion": "1",
    "OperatingSystem": "Linux", "KernelVersion": "6"
  }, "DockerInfo": {}, "CustomMetadata": null
}"""
SECTIONS = {
    SectionType.KERNEL: (b"kernel",),
    SectionType.CMDLINE: (b"cmdline",),
    SectionType.METADATA: (METADATA,),
    SectionType.RAMDISK: (b"boot", b"app"),
}


def write_small_image(path: Path) -> Path:
    """The image at a path, which is returned."""
    sections = [NewSection(kind, [data]) for kind, contents in SECTIONS.items() for data in contents]
    write_eif(path, NewHeader(flags=0), sections)
    return path
