"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from alcove.errors import MachineError


def write_atomically(
    path: Path, data: str | bytes, mode: int, owner: tuple[str | None, str | None] = (None, None)
) -> None:
    """A file that is there whole or not at all, with its mode and owner from the first moment.

    Args:
        path: Where; directories that are missing are made.
        data: What is in it.
        mode: Its mode.
        owner: User and group, None for one's own.

    Raises:
        MachineError: It cannot be written, or there is no such user or group; what was there is there still, and
            nothing beside it.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        try:
            _write(part, data.encode() if isinstance(data, str) else data, mode, owner)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MachineError(f"{path} cannot be written: {error.strerror}") from None
    except LookupError as error:
        raise MachineError(f"{path} cannot be written: {error}") from None


def _write(path: Path, data: bytes, mode: int, owner: tuple[str | None, str | None]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        user, group = owner
        if user is not None or group is not None:
            shutil.chown(file.fileno(), user, group)  # type: ignore[arg-type]  # os.chown takes a descriptor too
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
