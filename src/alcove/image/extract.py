"""Takes an image apart into files.

    kernel, cmdline, metadata.json, ramdisk-0.cpio, ramdisk-1.cpio …    the data of the sections, byte for byte
    signing-certificate.pem, signature.cose                             what a signature section holds

Every name is ours, none the image's. The files are made in a directory of their own and moved when all are whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from alcove.codec.cpio_reader import Event
from alcove.errors import ImageFormatError, InputError
from alcove.image.builder import replacement, umask
from alcove.image.contents import MAX_UNPACKED, RamdiskReader
from alcove.image.explain import labelled
from alcove.image.format import SectionType
from alcove.image.reader import Eif, Section, chunks, measure_eif, read_at, read_eif, read_section
from alcove.image.rootfs import rootfs_tar
from alcove.image.signature import parse_section

_GZIP_MAGIC: Final = b"\x1f\x8b"
_FILES: Final = {SectionType.KERNEL: "kernel", SectionType.CMDLINE: "cmdline", SectionType.METADATA: "metadata.json"}


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was written, in the order of the image, and what is wrong with the image."""

    files: tuple[str, ...]
    warnings: tuple[str, ...]


def extract_eif(eif: Path, output: Path, *, replace: bool = False) -> Extracted:
    """Write the parts of the image `eif` to the directory `output`.

    Args:
        eif: The image.
        output: Made when it does not exist.
        replace: Write into a directory that holds something, over files of the same names.

    Raises:
        InputError: E19 when something cannot be read or written, or the directory is not empty.
        ImageFormatError: E35 when the image's structure is not sound.
    """
    try:
        with eif.open("rb") as file:
            parsed = read_eif(file, lenient=True)
            with _directory(output, replace=replace) as directory:
                return _extract(file, parsed, directory)
    except OSError as error:
        reason = f"cannot read or write `{error.filename or output}`: {error.strerror}"
        raise InputError(reason, code="E19") from error


@contextmanager
def _directory(output: Path, *, replace: bool) -> Iterator[Path]:
    """A directory to write to; its files are in `output` when the block ends well, and nowhere when it does not."""
    there = output.is_dir()
    if there and not replace and any(output.iterdir()):
        hint = "give another directory, or --force to replace what is there"
        raise InputError(f"`{output}` is not empty", hint=hint, code="E19")
    if not there and not output.absolute().parent.is_dir():
        raise InputError(f"`{output.absolute().parent}` is not a directory", hint="make it first", code="E19")
    made = Path(tempfile.mkdtemp(prefix=".alcove-", dir=output if there else output.absolute().parent))
    try:
        yield made
        if there:
            _move(made, output)
        else:
            made.chmod(0o777 & ~umask())
            made.rename(output)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _move(made: Path, output: Path) -> None:
    files = sorted(made.iterdir())
    for file in files:
        if (output / file.name).is_dir():
            raise InputError(f"`{output / file.name}` is a directory", hint="remove it first", code="E19")
    for file in files:
        file.replace(output / file.name)
    made.rmdir()


def _extract(file: BinaryIO, eif: Eif, directory: Path) -> Extracted:
    names = dict(_names(file, eif))
    with ExitStack() as stack:
        files = {section: stack.enter_context((directory / name).open("xb")) for section, name in names.items()}

        def write(section: Section, chunk: memoryview) -> None:
            if section in files:
                files[section].write(chunk)

        _, crc = measure_eif(file, eif, write)
    written, warnings = list(names.values()), list(eif.warnings)
    if crc != eif.header.eif_crc32:
        warnings.append(f"the checksum is {crc:08x}, the header says {eif.header.eif_crc32:08x}")
    signature = eif.find(SectionType.SIGNATURE)
    if signature is not None:
        written += _write_signature(read_section(file, signature), directory, warnings)
    return Extracted(tuple(written), tuple(warnings))


def _names(file: BinaryIO, eif: Eif) -> Iterator[tuple[Section, str]]:
    for label, section in labelled(eif):
        if section.type is SectionType.RAMDISK:
            gzip = read_at(file, section.data_offset, min(section.size, 2)) == _GZIP_MAGIC
            yield section, f"{label.replace(' ', '-')}.cpio{'.gz' if gzip else ''}"
        elif section.type in _FILES:
            yield section, _FILES[section.type]


def _write_signature(section: bytes, directory: Path, warnings: list[str]) -> list[str]:
    try:
        entry = parse_section(section)
    except ImageFormatError as error:
        warnings.append(error.message)
        (directory / "signature.cbor").write_bytes(section)
        return ["signature.cbor"]
    parts = {"signing-certificate.pem": entry.certificate, "signature.cose": entry.sign1}
    for name, data in parts.items():
        (directory / name).write_bytes(data)
    return list(parts)


def write_rootfs(eif: Path, output: Path, limit: int = MAX_UNPACKED) -> None:
    """Write the application's file system to `output`, a tar archive.

    Args:
        eif: The image.
        output: Holds the old file or the whole new one at every moment.
        limit: Bytes that the compressed parts of a ramdisk may unpack to.

    Raises:
        InputError: E19 when something cannot be read or written.
        ImageFormatError: E35 when the image or a ramdisk cannot be read, or holds names that lead out of it.
    """
    try:
        with eif.open("rb") as file:
            parsed = read_eif(file, lenient=True)
            with replacement(output) as tar:
                for chunk in rootfs_tar(lambda: _events(file, parsed, limit)):
                    tar.write(chunk)
    except OSError as error:
        raise InputError(f"cannot read `{eif}` or write `{output}`: {error.strerror}", code="E19") from error


def _events(file: BinaryIO, eif: Eif, limit: int) -> Iterator[Event]:
    for section in eif.ramdisks:
        reader = RamdiskReader(limit)
        for chunk in chunks(file, section.data_offset, section.size):
            yield from reader.receive(chunk)
        reader.close()
