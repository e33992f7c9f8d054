"""`sign-eif`: sign an image, or sign it again; the old file stays until the new one is whole.

1. the image's structure can be read; what nitro-cli leaves behind is tolerated and mended (eif.md §8 trap 1)
2. its checksum is right: a damaged image is not signed
3. PCR0 is measured and signed
4. the image is written again around the signature: in the old one's place, or at the end
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from alcove.errors import ImageFormatError, InputError, UsageError
from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.format import CRC_OFFSET, MAX_SIGNATURE, SECTION_HEADER_SIZE, EifHeader, SectionType
from alcove.image.measure import crc32, crc32_joined
from alcove.image.reader import Eif, chunks, measure_eif, read_eif
from alcove.image.signing import Signer
from alcove.image.signing_keys import load_signer
from alcove.types import Measurements

__all__ = ["load_signer", "sign_eif"]


def sign_eif(path: Path, signer: Signer, warn: Callable[[str], object] = lambda _: None) -> Measurements:
    """Put a signature over its PCR0 into the image at `path`, in place of one that is there.

    Everything else of the image stays as it is, unknown flag bits included (eif.md §1.5).

    Args:
        path: The image; where it is a symlink, its target is replaced.
        signer: Whose signature it gets.
        warn: Gets a line for everything that was wrong with the section table, which the new image has right.

    Raises:
        ImageFormatError: E35 when the image is malformed or damaged.
        InputError: E19 when it cannot be read or written.
        UsageError: E60 when it is of version 2, which has no signatures.
    """
    try:
        with path.open("rb") as file:
            eif = read_eif(file, lenient=True)  # 1
            _check_signable(eif)
            measurer, crc = measure_eif(file, eif)
            _check_checksum(eif, crc)  # 2
            signature = _sign(signer, measurer.measurements())  # 3
            header = NewHeader(eif.header.flags, eif.header.version, eif.header.default_mem, eif.header.default_cpus)
            write_eif(path, header, _sections(file, eif, signature))  # 4
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror}", code="E19") from error
    for warning in eif.warnings:
        warn(warning)
    return measurer.measurements(signer.certificate_der)


def _check_signable(eif: Eif) -> None:
    version = eif.header.version
    if version < 3:
        raise UsageError(f"an image of version {version} cannot be signed", code="E60", hint="build it again")
    if version >= 4 and eif.find(SectionType.METADATA) is None:
        raise ImageFormatError("no metadata section, which version 4 demands", field="sections", hint="build it again")


def _check_checksum(eif: Eif, crc: int) -> None:
    """The checksum is that of the file, or that of the file with a right section table."""
    header = eif.header
    sizes = (*(section.size for section in eif.sections), *header.section_sizes[header.num_sections :])
    if header.eif_crc32 not in (crc, _with_header(eif, crc, replace(header, section_sizes=sizes))):
        raise ImageFormatError(
            f"the checksum is {crc:08x}, the header says {header.eif_crc32:08x}",
            field="eif_crc32",
            offset=CRC_OFFSET,
            hint="the file was damaged or changed, so it is not signed; build it or copy it again",
        )


def _with_header(eif: Eif, crc: int, other: EifHeader) -> int:
    """The checksum that the image would have with another header."""
    length = sum(SECTION_HEADER_SIZE + section.size for section in eif.sections)
    old, new = (crc32_joined(crc32(header.pack()[:CRC_OFFSET]), 0, length) for header in (eif.header, other))
    return crc ^ old ^ new


def _sign(signer: Signer, measured: Measurements) -> bytes:
    data = signer.sign(measured.pcr0)
    if len(data) > MAX_SIGNATURE:
        hint = "leave only the signer's own certificate in the PEM file"
        message = f"{len(data)} bytes are more than the {MAX_SIGNATURE} of a signature section"
        raise ImageFormatError(message, field="signature", hint=hint, code="E60")
    return data


def _sections(file: BinaryIO, eif: Eif, signature: bytes) -> Iterator[NewSection]:
    new = NewSection(SectionType.SIGNATURE, (signature,))
    for section in eif.sections:
        if section.type is SectionType.SIGNATURE:
            yield new
        else:
            yield NewSection(section.type, chunks(file, section.data_offset, section.size), section.flags)
    if eif.find(SectionType.SIGNATURE) is None:
        yield new
