"""The line that moves, drawn by rich on standard error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

PER_SECOND: Final = 8  # refreshes; a person sees no more


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
def live() -> Iterator[Live]:
    """A bar for as long as the block lasts."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=PER_SECOND) as progress:
        yield Live(progress)
