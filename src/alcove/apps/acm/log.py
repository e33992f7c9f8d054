"""The application's log: one line an event, on standard error, without secrets and without control characters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

Log = Callable[[str], None]
MAX_LINE: Final = 300


def to_stderr(line: str) -> None:
    """Write a line; what came from others cannot break it."""
    sys.stderr.write("acm: " + "".join(c if c.isprintable() else "?" for c in line[:MAX_LINE]) + "\n")
    sys.stderr.flush()
