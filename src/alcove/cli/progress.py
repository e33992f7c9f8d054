"""A line that moves while an image is made: stage, bytes, rate. On a terminal only; elsewhere lines are just lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from alcove.cli import output


class Watcher(Protocol):
    """What a long command tells."""

    def say(self, line: str) -> None:
        """Take a line that stays."""

    @property
    def on_bytes(self) -> Callable[[str, int, int | None], None] | None:
        """Takes how far a stage is, total unknown or not; None when nobody looks, for counting has its price."""


class Lines:
    """Lines, and no progress: for a pipe or a file."""

    def say(self, line: str) -> None:
        """Print the line."""
        output.say(line)

    on_bytes = None


@contextlib.contextmanager
def watcher() -> Iterator[Watcher]:
    """Live on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from alcove.cli.live import live  # noqa: PLC0415 - rich takes as long to load as all else together

    with live() as watch:
        yield watch
