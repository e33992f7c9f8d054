"""What the operator of a server is told: JSON lines, one an event, without secrets and without what requests carry.

Requests that are refused or fail are in it with their ids, and so found again in the audit log. Those that nobody
signed are counted alone (see `metrics`): a stranger cannot fill a disk.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

import structlog

from alcove.errors import MachineError

STANDARD_ERROR: Final = "-"


class Log(Protocol):
    """Takes an event with its facts."""

    def __call__(self, event: str, **facts: Any) -> Any:
        """Writes it down."""
        ...


def silent(event: str, **facts: Any) -> None:
    """The log of whoever wants none."""
    del event, facts


def open_log(name: str) -> Log:
    """A log in a file, to which it appends, or on standard error.

    Raises:
        MachineError: It cannot be opened.
    """
    try:
        stream: TextIO = sys.stderr if name == STANDARD_ERROR else Path(name).open("a", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    except OSError as error:
        raise MachineError(f"cannot open the log `{name}`: {error.strerror}") from error
    logger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.BoundLogger,
    )
    return logger.info  # type: ignore[no-any-return]


def place_of(error: BaseException) -> str:
    """Kind and place of an exception. Its text is left out: it may quote what was being worked on."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
