"""Which of Alcove's modules a program needs: what is imported, and what that imports, as far as it is Alcove's.

Core: sources in, names out. Also imports inside functions count: a command's modules are loaded when it is asked for.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable

PACKAGE = "alcove"

Read = Callable[[str], str | None]
"""The source of a module or package by its dotted name; None when there is no such module."""


def closure(entries: Iterable[str], read: Read) -> set[str]:
    """The dotted names of all modules and packages that `entries` lead to, themselves included."""
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in found or not (name + ".").startswith(PACKAGE + "."):
            continue
        source = read(name)
        if source is None:  # a name in a module, not a module
            continue
        found.add(name)
        waiting += [name.rpartition(".")[0], *_imported(source)]
    return found


def _imported(source: str) -> Iterable[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
