"""``alcove eif``: look into image files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alcove.cli import output
from alcove.cli.parsers import Commands, command

if TYPE_CHECKING:
    from alcove.image.difference import Difference

DIFFERENT: Final = 1  # as of diff(1)


def add_commands(commands: Commands) -> None:
    """Add ``eif`` and its sub-commands."""
    group = commands.add_parser("eif", help="look into enclave images").add_subparsers(metavar="COMMAND", required=True)
    parser = command(
        group,
        "diff",
        diff,
        "say in what two images differ, and which PCRs that moves; exit status: 0 the same, 1 different",
        "alcove eif diff old.eif new.eif",
    )
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    _add_reading_flags(parser)
    parser = command(
        group,
        "explain",
        explain,
        "list what was measured into which PCR: every section, and every file of the ramdisks, with its digest",
        "alcove eif explain app.eif",
    )
    parser.add_argument("eif", type=Path, metavar="EIF")
    _add_reading_flags(parser)


def _add_reading_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--max-unpacked", type=_gib, default=16 << 30, metavar="GIB", help="of a compressed ramdisk (default: 16)"
    )


def _gib(text: str) -> int:
    value = float(text)
    if not 0 < value <= 1 << 20:
        raise ValueError(text)
    return int(value * (1 << 30))


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
