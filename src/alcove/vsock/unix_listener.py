"""A Unix socket that is there completely or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alcove.errors import MachineError

BACKLOG: Final = 1024  # the kernel cuts it to net.core.somaxconn
MODE: Final = 0o600


class TakenError(MachineError):
    """Another program listens there."""


@contextmanager
def listening(path: Path, backlog: int = BACKLOG) -> Iterator[socket.socket]:
    """A listening, non-blocking socket at `path`, mode 0600; gone when the context ends.

    It is made under another name and linked into place, so nobody meets it half made. A socket that is there already is
    replaced when nobody answers on it.

    Raises:
        TakenError: Somebody answers there.
        MachineError: The path is no socket, or it cannot be made.
    """
    try:
        listener, mark = _create(path, backlog)
    except OSError as error:
        raise MachineError(f"{path}: cannot listen: {error.strerror or error}") from None
    try:
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError), _locked(path.parent):
            if _mark(path) == mark:  # not somebody else's by now
                path.unlink()


def _create(path: Path, backlog: int) -> tuple[socket.socket, tuple[int, int]]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # A short name in a directory of our own: mode 0700 until the socket has its own mode.
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as private:
            made = Path(private, "s")
            listener.bind(str(made))
            made.chmod(MODE)
            listener.listen(backlog)
            mark = _mark(made)
            with _locked(path.parent):
                _remove_stale(path)
                os.link(made, path)
    except BaseException:
        listener.close()
        raise
    return listener, mark


def _remove_stale(path: Path) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise MachineError(f"{path} is there and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # a full backlog: somebody is there
    raise TakenError(f"{path}: another program listens there", hint="end it first, or take another port")


def _mark(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Alone among those that lock this directory: two programs must not replace the same dead socket."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
