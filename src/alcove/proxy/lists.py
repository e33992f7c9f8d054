"""The files that say what may be reached."""

from __future__ import annotations

from pathlib import Path

from alcove.errors import InputError


def read(path: Path, hint: str | None = None) -> str:
    """The text of a list.

    Args:
        path: Where it is.
        hint: For who has none.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror
    except UnicodeError:
        reason = "it is not UTF-8"
    raise InputError(f"{path}: the list cannot be read: {reason}", hint=hint)
