"""The authority's files: one writer at a time, each file replaced as a whole, nothing readable that is private."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from alcove.errors import MachineError

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644
MAX_FILE: Final = 1 << 20  # bytes; keys, certificates and requests are far smaller, revocation lists smaller


@contextlib.contextmanager
def locked(directory: Path, *, wait: bool = True) -> Iterator[None]:
    """The directory, made if need be, for ourselves alone; MachineError when another has it and we do not wait."""
    make_directory(directory)
    try:
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise MachineError(f"cannot lock `{directory}`: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MachineError(f"`{directory}` is in use by another command") from None
        yield
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """A directory for its owner alone; MachineError when it cannot be made."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make `{directory}`: {error.strerror}") from error


def read_file(path: Path) -> bytes:
    """A small file's bytes; MachineError when it cannot be read or is not small."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise MachineError(f"cannot read `{path}`: {error.strerror}") from error
    if len(content) > MAX_FILE:
        raise MachineError(f"`{path}` is larger than {MAX_FILE} bytes")
    return content


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Replace a file as a whole; a crash leaves the old one or the new one. MachineError when that fails."""
    temporary = path.with_name(f".{path.name}.new")  # one writer at a time: the lock is held
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise MachineError(f"cannot write `{path}`: {error.strerror}") from error


def remove_file(path: Path) -> None:
    """Remove a file if it is there; MachineError when that fails."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot remove `{path}`: {error.strerror}") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
