"""Write the parts of the reference that the programs themselves know: commands and error codes.

    python scripts/reference.py [--check]

The parsers are read, not their help texts, which Python's releases lay out differently.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alcove.cli import kmstool
from alcove.cli.codes import ERROR_CODES
from alcove.cli.inside import enclave_parser
from alcove.cli.main import alcove_parser, nitro_parser, proxy_parser

DIRECTORY = Path(__file__).resolve().parent.parent / "docs" / "reference"
COMMANDS = """\
# Commands

Made from the programs' parsers by `python scripts/reference.py`. `--help` says the same in a terminal. Every program is
in `.venv/bin/` after `make setup`. What an exit status means is in [errors.md](errors.md).
"""
ERRORS = """\
# Errors

Made from the programs by `python scripts/reference.py`.

An error is one line on standard error, with a hint on a second one where there is something to do, and a status that is
not zero. `ALCOVE_DEBUG=1` shows where it came from instead, `BACKTRACE=1` adds nitro-cli's own form of that.

    [ E26 ] 64 MiB is too little for this image; it needs at least 256 MiB
    hint: pass --memory 256, or build a smaller ramdisk

## Exit statuses

| status | of | meaning |
|---|---|---|
| 0 | all | it is done |
| 1 | all | an error without a number |
| 1 | `doctor` | something is missing |
| 1 | `acm status`, `health` | something is not served; the application is unhealthy |
| 1 | `eif diff` | the images differ |
| 1 | `kms policy explain`, `kms policy lint` | the request is refused; there are warnings |
| 2 | all | the command line is wrong |
| 2 | `kms policy explain`, `kms policy lint` | there is no answer, for an error |
| 3 | `attest verify`, `eif verify` | not a valid document or image |
| 4 | `attest verify` | a valid document that does not meet the policy |
| 1 to 60 | all | the number of the error's code, below |
| 130, 141, 143 | all | ended by Ctrl-C, by its reader, by SIGTERM |
| 255 | `kmstool_enclave_cli` | it failed; the reason is on standard error |

`alcove exec` and `alcove-enclave run` end with the status of the program that they run.

## Codes

AWS's numbers and names. Codes of failures that cannot happen here, such as those of the Nitro driver's calls, are
explained and never given. An ellipsis stands for what the report itself names.

| code | name | meaning |
|---|---|---|
"""


class Group(NamedTuple):
    """Flags under a heading, which several commands may have."""

    title: str
    text: str
    rows: tuple[str, ...]


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of the commands that do something, in the order of their help."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001 - argparse has no public list
    for action in inner:
        for child in action.choices.values():
            yield from leaves(child)
    if not inner:
        yield parser


def word(action: argparse.Action) -> str:
    """What stands for an argument's value, or for the argument itself."""
    shown = action.metavar if isinstance(action.metavar, str) else None
    if shown is None and action.choices is not None:
        shown = "|".join(map(str, action.choices))
    return shown or (action.dest.upper() if action.option_strings else action.dest)


def flag(action: argparse.Action) -> str:
    """An argument as it is typed."""
    if not action.option_strings:
        return {"?": f"[{word(action)}]", "*": f"[{word(action)}…]", "...": f"[{word(action)}…]"}.get(
            str(action.nargs), word(action)
        )
    value = "" if action.nargs == 0 else f" {word(action)}{'…' if action.nargs == '+' else ''}"
    return ", ".join(action.option_strings) + value


def synopsis(parser: argparse.ArgumentParser) -> str:
    """The command with what it cannot do without."""
    exclusive = [group for group in parser._mutually_exclusive_groups if group.required]  # noqa: SLF001
    alone = [action for action in parser._actions if action.required and action.option_strings]  # noqa: SLF001
    positional = [action for action in parser._actions if not action.option_strings]  # noqa: SLF001
    choices = ["(" + " | ".join(map(flag, group._group_actions)) + ")" for group in exclusive]  # noqa: SLF001
    shown = {id(action) for group in exclusive for action in group._group_actions}  # noqa: SLF001
    rest = [a for a in parser._actions if a.option_strings and not a.required and id(a) not in shown]  # noqa: SLF001
    more = ["[options]"] if any(a.dest not in {"help", "version"} for a in rest) else []
    return " ".join([parser.prog, *map(flag, alone), *choices, *more, *map(flag, positional)])


def row(action: argparse.Action) -> str:
    """An argument as a line of a table."""
    text = f"`{flag(action)}` | {action.help or ''}".replace("|", "\\|").replace("` \\|", "` |", 1)
    return f"| {text.replace('%%', '%')} |"


def groups(parser: argparse.ArgumentParser) -> Iterator[Group]:
    """A parser's arguments; those without a heading have an empty title."""
    plain: list[str] = []
    titled: list[Group] = []
    silent = (argparse._HelpAction, argparse._VersionAction)  # noqa: SLF001
    for group in parser._action_groups:  # noqa: SLF001
        rows = [row(action) for action in group._group_actions if not isinstance(action, silent)]  # noqa: SLF001
        if group.description:
            titled.append(Group(group.title or "", group.description, tuple(rows)))
        else:
            plain += rows
    yield Group("", "", tuple(plain))
    yield from titled


def table(rows: tuple[str, ...]) -> list[str]:
    """A table, if there is anything in it."""
    return ["", "| | |", "|---|---|", *rows] if rows else []


def describe(parser: argparse.ArgumentParser, common: Counter[Group]) -> list[str]:
    """One command's section."""
    lines = ["", f"### {parser.prog}", "", *(parser.description or "").splitlines(), "", f"    {synopsis(parser)}"]
    rows: tuple[str, ...] = ()
    notes: list[str] = []
    shared: list[str] = []
    for group in groups(parser):
        if common[group] > 1:
            shared.append(f"[{group.title}](#{group.title.replace(' ', '-').replace(chr(39), '')})")
        else:
            rows += group.rows
            notes += ["", *group.text.splitlines()]
    lines += table(rows) + notes
    if shared:
        lines += ["", f"And flags for {', '.join(shared)}."]
    example = (parser.epilog or "").removeprefix("example:").removeprefix("\n")
    return (
        [*lines, "", "For example:", "", *(f"    {line.strip()}" for line in example.splitlines())]
        if example
        else lines
    )


def commands() -> str:
    """The page of commands."""
    programs: list[Any] = [alcove_parser(), proxy_parser(), enclave_parser()]
    common = Counter(group for program in programs for leaf in leaves(program) for group in groups(leaf) if group.text)
    nitro = [f"`{leaf.prog.removeprefix('nitro-cli ')}`" for leaf in leaves(nitro_parser())]
    lines = [
        *COMMANDS.splitlines(),
        "",
        "`nitro-cli` is the same program under AWS's name, with",
        f"{', '.join(nitro)}.",
    ]
    for program in programs:
        lines += ["", f"## {program.prog}"]
        for leaf in leaves(program):
            lines += describe(leaf, common)
    lines += ["", "## kmstool_enclave_cli", "", *(f"    {line}".rstrip() for line in kmstool._USAGE.splitlines())]  # noqa: SLF001
    lines += ["", "## Flags that several commands have"]
    for group, count in common.items():
        if count > 1:
            lines += ["", f"### {group.title}", "", *group.text.splitlines(), *table(group.rows)]
    return squeezed(lines)


def errors() -> str:
    """The page of errors."""
    rows = [f"| {code} | {name} | {text.replace('|', chr(92) + '|')} |" for code, (name, text) in ERROR_CODES.items()]
    return squeezed([*ERRORS.splitlines(), *rows])


def squeezed(lines: list[str]) -> str:
    """The text, without two empty lines in a row."""
    kept = [line for index, line in enumerate(lines) if line or (index and lines[index - 1])]
    return "\n".join(kept) + "\n"


PAGES = {"commands.md": commands, "errors.md": errors}


def stale() -> list[str]:
    """The names of the pages that do not say what the programs say."""
    return [name for name, page in PAGES.items() if written(name) != page()]


def written(name: str) -> str:
    """A page as it is in the tree, or nothing."""
    path = DIRECTORY / name
    return path.read_text() if path.exists() else ""


def main() -> int:
    """Write the pages, or compare them."""
    old = stale()
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{name} is stale" for name in old) or "the reference is what the programs say")
        return 1 if old else 0
    DIRECTORY.mkdir(exist_ok=True)
    for name in old:
        (DIRECTORY / name).write_text(PAGES[name]())
        print(f"wrote docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
