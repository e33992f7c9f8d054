"""``alcove eif``: look into image files."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alcove.cli import output
from alcove.cli.parsers import Commands, command, command_group
from alcove.errors import InputError

if TYPE_CHECKING:
    from alcove.image.difference import Difference

DIFFERENT: Final = 1  # as of diff(1)
NOT_VALID: Final = 3  # as of `attest verify`
REGISTERS: Final = (0, 1, 2, 8)


def add_commands(commands: Commands) -> None:
    """Add ``eif`` and its sub-commands."""
    inner = command_group(commands, "eif", "look into enclave images")
    parser = command(
        inner,
        "diff",
        diff,
        "say in what two images differ, and which PCRs that moves; exit status: 0 the same, 1 different",
        "alcove eif diff old.eif new.eif",
    )
    parser.add_argument("a", type=Path, metavar="A", help="an image")
    parser.add_argument("b", type=Path, metavar="B", help="another")
    _add_reading_flags(parser)
    parser = command(
        inner,
        "explain",
        explain,
        "list what was measured into which PCR: every section, and every file of the ramdisks, with its digest",
        "alcove eif explain app.eif",
    )
    parser.add_argument("eif", type=Path, metavar="EIF", help="the image")
    _add_reading_flags(parser)

    parser = command(
        inner,
        "extract",
        extract,
        "write kernel, command line, metadata, ramdisks and certificate of an image to files",
        "alcove eif extract app.eif --output app.parts --rootfs app.tar",
    )
    parser.add_argument("eif", type=Path, metavar="EIF", help="the image")
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new or empty directory")
    parser.add_argument("--force", action="store_true", help="write into a directory that is not empty")
    parser.add_argument("--rootfs", type=Path, metavar="TAR", help="the application's file system, as a tar archive")
    _add_limit(parser)
    parser.set_defaults(parser=parser)
    _add_verify(inner)


def _add_verify(group: Commands) -> None:
    parser = command(
        group,
        "verify",
        verify,
        "check an image, step by step; exit status: 0 valid, 3 not valid",
        "alcove eif verify app.eif --certificate signer.pem",
    )
    parser.add_argument("eif", type=Path, metavar="EIF", help="the image")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="of the signer (this pins PCR8)")
    for index in REGISTERS:
        parser.add_argument(f"--pcr{index}", type=_register, metavar="HEX", help="what it must be")
    parser.add_argument("--at", type=_moment, default="now", metavar="TIME", help="now, or an RFC 3339 time")
    parser.add_argument("--allow-unsigned", action="store_true", help="accept an image without a signature")
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_reading_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")
    _add_limit(parser)


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-unpacked", type=_gib, default=16 << 30, metavar="GIB", help="of a compressed ramdisk (default: 16)"
    )


def _gib(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text} is not a number of GiB")
    return int(value * (1 << 30))


def _register(text: str) -> bytes:
    if not re.fullmatch("[0-9a-fA-F]{96}", text):
        raise argparse.ArgumentTypeError("a PCR is 96 hexadecimal digits")
    return bytes.fromhex(text)


def _moment(text: str) -> datetime:
    try:
        at = datetime.now(UTC) if text == "now" else datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("give now, or such as 2026-01-02T03:04:05Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def diff(arguments: argparse.Namespace) -> int:
    """``eif diff``."""
    from alcove.image.diff import diff_images  # noqa: PLC0415 - only this command needs it

    with ExitStack() as stack:
        compared = diff_images(arguments.a, arguments.b, stack, arguments.max_unpacked)
        registers = compared.registers()
        if arguments.json:
            found = [difference.to_json() for difference in compared.differences]
            output.result({"same": not found, "registers": registers, "differences": found})
            return DIFFERENT if found else 0
        different = _show(compared.differences)
    for name, register in registers.items():
        values = register["a"], register["b"]
        if register["same"]:
            output.text(f"{name} the same{'' if values[0] else ': none'}")
        else:
            output.text(f"{name} differs\n  A {values[0] or 'none'}\n  B {values[1] or 'none'}")
    return DIFFERENT if different else 0


def _show(differences: Iterable[Difference]) -> bool:
    """Print them under the names of their sections; whether there were any."""
    different = False
    for (where, pcrs), found in groupby(differences, key=lambda difference: (difference.where, difference.pcrs)):
        different = True
        moves = " ".join(f"PCR{index}" for index in pcrs) or "no PCR"
        output.text(f"{where} (moves {moves})")
        for difference in found:
            output.text(f"  {difference.what}")
    return different


def explain(arguments: argparse.Namespace) -> None:
    """``eif explain``."""
    from alcove.image import explain as explaining  # noqa: PLC0415 - only this command needs it

    if arguments.json:
        lines = explaining.explained(arguments.eif, arguments.max_unpacked)
        output.results(line.to_json() for line in lines)
    else:
        for text in explaining.explain_eif(arguments.eif, arguments.max_unpacked):
            output.text(text)


def extract(arguments: argparse.Namespace) -> None:
    """``eif extract``."""
    from alcove.image import extract as extracting  # noqa: PLC0415 - only this command needs it

    if arguments.output is None and arguments.rootfs is None:
        arguments.parser.error("--output or --rootfs is needed")
    if arguments.output is not None:
        extracted = extracting.extract_eif(arguments.eif, arguments.output, replace=arguments.force)
        for warning in extracted.warnings:
            output.warn(warning)
        for name in extracted.files:
            output.text(str(arguments.output / name))
    if arguments.rootfs is not None:
        extracting.write_rootfs(arguments.eif, arguments.rootfs, arguments.max_unpacked)
        output.text(str(arguments.rootfs))


def verify(arguments: argparse.Namespace) -> int:
    """``eif verify``."""
    from alcove.image import verify as verifying  # noqa: PLC0415 - only this command needs it

    expected = verifying.Expected(
        certificate=None if arguments.certificate is None else _certificate(arguments.certificate),
        registers={i: value for i in REGISTERS if (value := getattr(arguments, f"pcr{i}")) is not None},
        unsigned=arguments.allow_unsigned,
    )
    try:
        with arguments.eif.open("rb") as file:
            verified = verifying.verify_image(file, expected, arguments.at)
    except OSError as error:
        raise InputError(f"cannot read `{arguments.eif}`: {error.strerror}", code="E19") from error
    except verifying.ImageRefusedError as error:
        if arguments.json:
            output.result({"valid": False, "step": error.step, "reason": error.reason})
        output.error("alcove", error)
        return NOT_VALID
    if arguments.json:
        output.result({"valid": True, "steps": verified.steps, "Measurements": verified.measurements.to_json()})
        return 0
    for step in verified.steps:
        output.text(f"ok  {step}")
    if expected.certificate is None and not expected.registers:
        output.warn(
            "anybody can sign an image: pass --certificate or --pcr0, --pcr1 and --pcr2 to say whose it must be"
        )
    return 0


def _certificate(path: Path) -> bytes:
    from alcove.cli.attest_inputs import read_bytes  # noqa: PLC0415 - only this command needs it
    from alcove.image.signing import SignatureRefusedError, certificate_der  # noqa: PLC0415

    try:
        return certificate_der(read_bytes(path))
    except SignatureRefusedError:
        raise InputError(f"`{path}` holds no certificate in PEM", code="E57") from None
