"""The reference says what the programs say."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import reference

from alcove.cli.inside import enclave_parser
from alcove.cli.main import alcove_parser, nitro_parser, proxy_parser

TREE = Path(__file__).parent.parent.parent
PROGRAMS = [alcove_parser, nitro_parser, proxy_parser, enclave_parser]


@pytest.mark.parametrize("name", list(reference.PAGES))
def test_a_page_is_what_the_programs_say(name: str) -> None:
    """A flag, a text or a code that changed has changed in the reference (python scripts/reference.py)."""
    assert reference.written(name) == reference.PAGES[name]()


def arguments() -> Iterator[tuple[str, argparse.Action]]:
    for program in PROGRAMS:
        for leaf in reference.leaves(program()):
            yield from ((leaf.prog, action) for action in leaf._actions)


def test_every_argument_says_what_it_is() -> None:
    """No command has an argument whose help is empty."""
    assert [(command, action.dest) for command, action in arguments() if not action.help] == []


def test_every_command_says_what_it_does() -> None:
    """No command's help is without a sentence."""
    leaves = [leaf for program in PROGRAMS for leaf in reference.leaves(program())]
    assert [leaf.prog for leaf in leaves if not leaf.description] == []
    assert len(leaves) > 60


def test_links_between_pages_lead_somewhere() -> None:
    """Each relative link in a text of the tree names a file of the tree, and a heading where it names one."""
    broken = []
    for page in [*TREE.glob("*.md"), *TREE.glob("docs/**/*.md"), *TREE.glob("examples/*/*.md")]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            name, _, heading = target.partition("#")
            file = page if not name else page.parent / name
            if "://" not in target and (not file.exists() or (heading and heading not in headings(file))):
                broken.append(f"{page.relative_to(TREE)}: {target}")
    assert broken == []


def headings(page: Path) -> set[str]:
    """What a page's headings are called in links."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}
