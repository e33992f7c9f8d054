"""What the machine needs of an image, checked and laid out as files.

1. the structure is sound (`reader`), the version known, a ramdisk there           E35
2. the architecture is this machine's                                              E35
3. the checksum is right                                                           E35
4. metadata can be read, where there is any                                        E35
5. the signature, where there is one, is over the measured PCR0 and valid now      E59
6. kernel and ramdisks are written to files

The files are written in the pass that measures, so what boots is what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from alcove.errors import ImageFormatError, InputError
from alcove.image.format import CRC_OFFSET, SectionType
from alcove.image.measure import Measurer
from alcove.image.metadata import parse_metadata
from alcove.image.reader import Eif, Section, measure_eif, read_eif, read_section
from alcove.image.signing import certificate_der, verify_section
from alcove.types import Measurements


@dataclass(frozen=True, slots=True)
class BootFiles:
    """An image ready to boot.

    Attributes:
        kernel, initrd: Files in the given directory; the initrd is all ramdisks one after the other.
        cmdline: The kernel command line.
        measurements: PCR0, PCR1, PCR2, and PCR8 when the image is signed.
        image_name, image_version: From the metadata; None for images without.
        metadata: The `Metadata` object of describe commands; empty for images without.
        size: Of the image file, in bytes.
        certificate: DER of the signing certificate, or None.
        architecture: `x86_64` or `aarch64`.
        warnings: What was tolerated.
    """

    kernel: Path
    initrd: Path
    cmdline: str
    measurements: Measurements
    image_name: str | None
    image_version: str | None
    metadata: dict[str, Any]
    size: int
    certificate: bytes | None
    architecture: str = "x86_64"
    warnings: tuple[str, ...] = field(default=())


def prepare_boot(eif: Path, directory: Path, *, architecture: str = "x86_64", at: datetime | None = None) -> BootFiles:
    """Check the image `eif` by the recipe above and write its kernel and initrd to `directory`.

    Args:
        eif: The image.
        directory: Where `kernel` and `initrd` go; it must exist.
        architecture: Of the machine that is to boot it.
        at: The time at which a signing certificate must be valid; now when None.

    Raises:
        ImageFormatError: E35 when the image is not one that can boot.
        InputError: E19 when a file cannot be read or written, E59 when the signature is not accepted.
    """
    try:
        with eif.open("rb") as file:
            return _prepare(file, directory, architecture, at or datetime.now(UTC))
    except OSError as error:
        raise InputError(f"cannot read or write `{error.filename or eif}`: {error.strerror}", code="E19") from error


def _prepare(file: BinaryIO, directory: Path, architecture: str, at: datetime) -> BootFiles:
    eif = read_eif(file)  # 1
    if not eif.ramdisks:
        raise ImageFormatError("no ramdisk, so nothing to boot", field="sections")
    if eif.header.architecture != architecture:  # 2
        hint = f"build the image for {architecture}"
        raise ImageFormatError(f"the image is for {eif.header.architecture}", field="flags", offset=6, hint=hint)
    name, version, metadata = _metadata(file, eif)  # 4
    kernel, initrd = directory / "kernel", directory / "initrd"
    measurer = _extract(file, eif, kernel, initrd)  # 3, 6
    certificate = None
    signature = eif.find(SectionType.SIGNATURE)
    if signature is not None:  # 5
        entry = verify_section(read_section(file, signature), measurer.measurements().pcr0, at)
        certificate = certificate_der(entry.certificate)
    return BootFiles(
        kernel=kernel,
        initrd=initrd,
        cmdline=_cmdline(read_section(file, eif.find(SectionType.CMDLINE))),
        measurements=measurer.measurements(certificate),
        image_name=name,
        image_version=version,
        metadata=metadata,
        size=eif.size,
        certificate=certificate,
        architecture=architecture,
        warnings=eif.warnings,
    )


def _metadata(file: BinaryIO, eif: Eif) -> tuple[str | None, str | None, dict[str, Any]]:
    section = eif.find(SectionType.METADATA)
    if section is None:
        return None, None, {}
    metadata = parse_metadata(read_section(file, section))
    return metadata.name, metadata.version, metadata.describe()


def _cmdline(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ImageFormatError("not UTF-8 text", field="cmdline") from None
    if "\0" in text:
        raise ImageFormatError("has a NUL", field="cmdline")
    return text


def _extract(file: BinaryIO, eif: Eif, kernel: Path, initrd: Path) -> Measurer:
    """Write kernel and initrd in the pass that measures, and check the checksum at its end."""
    with kernel.open("wb") as kernel_file, initrd.open("wb") as initrd_file:
        targets = {SectionType.KERNEL: kernel_file, SectionType.RAMDISK: initrd_file}

        def write(section: Section, chunk: memoryview) -> None:
            if section.type in targets:
                targets[section.type].write(chunk)

        measurer, crc = measure_eif(file, eif, write)
    if crc != eif.header.eif_crc32:
        raise ImageFormatError(
            f"the checksum is {crc:08x}, the header says {eif.header.eif_crc32:08x}",
            field="eif_crc32",
            offset=CRC_OFFSET,
            hint="the file was damaged or changed; build it or copy it again",
        )
    return measurer
