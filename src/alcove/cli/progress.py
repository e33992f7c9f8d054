"""A line that moves while an image is made: stage, bytes, rate. On a terminal only; elsewhere lines are just lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from alcove.cli import output

PER_SECOND: Final = 8  # refreshes; a person sees no more


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


class Live:
    """Lines above a bar that moves; the bar is gone in the end."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._next = 0.0

    def say(self, line: str) -> None:
        """Print the line above the bar, as it is."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def on_bytes(self, stage: str, done: int, total: int | None) -> None:
        """Move the stage's bar; a new stage takes the place of the old one."""
        if stage not in self._tasks:
            for task in self._tasks.values():
                self._progress.remove_task(task)
            self._tasks = {stage: self._progress.add_task(stage, total=total)}
        now = time.monotonic()
        if now >= self._next or done == total:  # a call for every small file must cost nothing
            self._next = now + 1 / PER_SECOND
            self._progress.update(self._tasks[stage], completed=done, total=total)


@contextlib.contextmanager
def watcher() -> Iterator[Watcher]:
    """Live on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=PER_SECOND) as progress:
        yield Live(progress)
