"""Unix sockets at paths of any length.

An address holds 107 bytes and a NUL (unix(7)). For a longer path the directory is opened and the address goes through
/proc/self/fd, so only the file's own name has to be short.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alcove.errors import MachineError

MAX_ADDRESS: Final = 107  # unix(7): sun_path has 108 bytes with its NUL


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """An address to bind or connect to; it is valid inside the `with` only.

    Raises:
        MachineError: The file's own name is too long.
        OSError: The directory cannot be opened.
    """
    if len(os.fsencode(path)) <= MAX_ADDRESS:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{directory}/{path.name}"
        if len(os.fsencode(short)) > MAX_ADDRESS:
            raise MachineError(
                f"the socket's name `{path.name}` is too long",
                hint=f"a socket's whole address has at most {MAX_ADDRESS} bytes; use a shorter name",
            )
        yield short
    finally:
        os.close(directory)


def listen(path: Path, *, mode: int = 0o600, backlog: int = 128) -> socket.socket:
    """A listening stream socket, non-blocking.

    Args:
        path: Where; nothing may be there.
        mode: Who may connect: on Linux that takes the right to write.
        backlog: How many may wait to be accepted.

    Raises:
        MachineError: E11 when it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    before = os.umask(0o777 & ~mode)
    try:
        with socket_address(path) as address:
            listener.bind(address)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise MachineError(
            f"cannot listen on `{path}`: {error.strerror or error}",
            code="E11",
            hint="remove the file if nothing listens there",
        ) from None
    except MachineError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener
