"""`sign-eif`: sign an image, or sign it again; the old file stays until the new one is whole."""

from __future__ import annotations

from pathlib import Path

from alcove.errors import InputError, UsageError
from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.format import SectionType
from alcove.image.reader import chunks, read_eif
from alcove.image.signing import Signer
from alcove.image.signing_keys import load_signer
from alcove.types import Measurements

__all__ = ["load_signer", "sign_eif"]


def sign_eif(path: Path, signer: Signer) -> Measurements:
    """Put a signature over its PCR0 into the image at `path`, in place of one that is there.

    Everything else of the image stays as it is, unknown flag bits included (eif.md §1.5).

    Raises:
        ImageFormatError: E35 when the image is malformed.
        InputError: E19 when it cannot be read or written.
        UsageError: E60 when it is of version 2, which has no signatures.
    """
    try:
        with path.open("rb") as file:
            eif = read_eif(file)
            if eif.header.version < 3:
                raise UsageError(f"an image of version {eif.header.version} cannot be signed", code="E60")
            sections = (
                NewSection(section.type, chunks(file, section.data_offset, section.size), section.flags)
                for section in eif.sections
                if section.type is not SectionType.SIGNATURE
            )
            header = NewHeader(eif.header.flags, eif.header.version, eif.header.default_mem, eif.header.default_cpus)
            measurer = write_eif(path, header, sections, signer.sign)
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror}", code="E19") from error
    return measurer.measurements(signer.certificate_der)
