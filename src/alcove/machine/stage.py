"""Show an unprivileged user files in places that only root can enter.

QEMU's user outside the jail is nobody's: it can enter neither root's state nor root's runtime directory. So root
gives the process a mount namespace in which the few files that the jail needs have names of their own, and becomes
that user afterwards. Nothing on the machine changes, and nothing has to be undone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from alcove.machine import linux

STAGE: Final = Path("/tmp")  # noqa: S108 - hidden under a fresh file system; bubblewrap builds its root here too


def staged(number: int) -> Path:
    """The name that the file with this number has on the stage."""
    return STAGE / str(number)


def set_stage(files: Mapping[Path, Path]) -> None:
    """For this process and its children: a fresh :data:`STAGE` in which each file appears under its staged name.

    Args:
        files: Staged name to file or directory.

    Raises:
        OSError: This process may not mount, or a file is missing.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    # opened before the stage hides what is below it
    opened = {name: os.open(file, os.O_PATH | os.O_CLOEXEC) for name, file in files.items()}
    linux.mount("tmpfs", str(STAGE), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=64k")
    for name, descriptor in opened.items():
        source = f"/proc/self/fd/{descriptor}"
        if os.path.isdir(source):  # noqa: PTH112 - the link says where the descriptor leads, which no Path follows better
            name.mkdir()
        else:
            name.touch()
        linux.mount(source, str(name), None, linux.MS_BIND | linux.MS_REC)
        os.close(descriptor)
