"""Unix socket addresses for paths of any length.

An address holds 107 bytes and a NUL (unix(7)). For a longer path the directory is opened and the address goes through
/proc/self/fd, so only the file's own name has to be short.
"""

from __future__ import annotations

import os
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
