"""The reference says what the programs say."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import reference

from alcove.apps.acm.rpc import RPC_PORT
from alcove.apps.acm.server import P11_PORT
from alcove.cli import inside_attestation, inside_credentials, inside_kms_proxy
from alcove.cli.inside import enclave_parser
from alcove.cli.main import alcove_parser, nitro_parser, proxy_parser
from alcove.enclave.clock import TIME_PORT
from alcove.enclave.last_words import LAST_WORDS_PORT
from alcove.image.process import LOG_PORT
from alcove.proxy import egress_relay, lease, lifeline
from alcove.proxy.gateways import DNS_PORT
from alcove.sdk.endpoint import PROXY_PORT
from alcove.sdk.servers import kmstool
from alcove.types import HEARTBEAT_PORT

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
        text = re.sub(r"`[^`\n]*`", "", page.read_text())  # a regular expression in code looks like a link
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, heading = target.partition("#")
            file = page if not name else page.parent / name
            if "://" not in target and (not file.exists() or (heading and heading not in headings(file))):
                broken.append(f"{page.relative_to(TREE)}: {target}")
    assert broken == []


def headings(page: Path) -> set[str]:
    """What a page's headings are called in links."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


VARIABLE = re.compile(r"(ALCOVE|AWS|NITRO_CLI|XDG|DOCKER)_[A-Z0-9_]+|BACKTRACE|RUST_LOG|SOURCE_DATE_EPOCH|TMPDIR|HOME")
NO_VARIABLES = {"AWS_KMS", "AWS_RAM"}  # KMS's own words


def variables_of_the_code() -> set[str]:
    """The texts in the code that are an environment variable's name and nothing else."""
    found = set()
    for path in set((TREE / "src").rglob("*.py")) - set((TREE / "src/alcove/testing").glob("*.py")):
        texts = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        found |= {text for text in texts if isinstance(text, str) and VARIABLE.fullmatch(text)}
    return found - NO_VARIABLES


def test_the_reference_has_every_environment_variable() -> None:
    """What a program reads from its environment is in the reference; what the reference names of ours is read."""
    page = (TREE / "docs/reference/configuration.md").read_text()
    named = {match[0] for match in VARIABLE.finditer(page)}
    read = variables_of_the_code()
    assert len(read) > 30
    assert read - named == set()
    assert {name for name in named - read if name.startswith(("ALCOVE_", "NITRO_CLI_"))} == set()


@pytest.mark.parametrize(
    ("heading", "place", "port"),
    [
        ("vsock", "enclave", kmstool.PORT), ("vsock", "parent", egress_relay.PORT), ("vsock", "parent", PROXY_PORT),
        ("vsock", "parent", HEARTBEAT_PORT), ("vsock", "parent", TIME_PORT), ("vsock", "parent", LAST_WORDS_PORT),
        ("vsock", "parent", lease.PORT),
        ("vsock", "enclave", lifeline.PORT), ("vsock", "enclave", LOG_PORT), ("vsock", "enclave", P11_PORT),
        ("vsock", "enclave", RPC_PORT), ("TCP", "enclave", DNS_PORT), ("TCP", "enclave", egress_relay.PORT),
        ("TCP", "enclave", inside_kms_proxy.DEFAULT_PORT), ("TCP", "enclave", inside_attestation.DEFAULT_PORT),
        ("TCP", "enclave", inside_credentials.TCP_PORT),
    ],
)  # fmt: skip
def test_the_reference_has_every_port(heading: str, place: str, port: int) -> None:
    """A port that the code uses by default stands in its table, on its side."""
    page = (TREE / "docs/reference/ports-and-paths.md").read_text()
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert re.search(rf"^\| {port} \| the {place}", section, re.MULTILINE)


def test_the_index_has_every_page() -> None:
    """No page of the documentation is without a link from its index."""
    index = (TREE / "docs/README.md").read_text()
    pages = [page for page in (TREE / "docs").glob("*/*.md") if page.parent.name != "decisions"]
    assert [page.name for page in pages if f"({page.relative_to(TREE / 'docs')})" not in index] == []
    assert len(pages) > 12


def test_every_test_that_a_promise_names_is_there() -> None:
    """SECURITY.md names the tests behind its promises, an ellipsis for a part of a name."""
    names = {
        match for path in TREE.glob("tests/**/test_*.py") for match in re.findall(r"def (test_\w+)", path.read_text())
    }
    files = {str(path.relative_to(TREE)) for path in TREE.glob("tests/**/*.py")} | {
        p.name for p in TREE.glob("tests/**/*.py")
    }
    words = re.findall(r"`((?:test_|…)[\w…./ ]+|tests/[\w/]+\.py)`", (TREE / "SECURITY.md").read_text())
    assert len(words) > 20
    missing = []
    for word in words:
        pattern = re.compile(".*".join(map(re.escape, word.replace(" ", "").split("…"))))
        if word not in files and not any(pattern.fullmatch(name) for name in names):
            missing.append(word)
    assert missing == []
