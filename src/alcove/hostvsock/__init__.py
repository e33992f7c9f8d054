"""AF_VSOCK for the parent's programs on any host: a preload library in C, and streams to enclaves.

``scripts/hatch_build.py`` compiles the library when the package is built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from alcove.errors import MachineError, UsageError

MAX_RUN: Final = 80  # bytes; preload.h


def preload_library(arch: str) -> Path:
    """The library for ``x86_64`` or ``aarch64``.

    Raises:
        MachineError: The package was built without it.
    """
    path = Path(str(resources.files(__name__))) / "build" / f"preload-{arch}.so"
    if not path.is_file():
        raise MachineError(
            f"the preload library for {arch} is not built",
            hint="install the package (make setup), or run python scripts/hatch_build.py",
        )
    return path


def environment(run: Path, arch: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables with which a program gets the library.

    Args:
        run: The runtime directory.
        arch: The program's architecture.
        inherited: The variables it has anyway; libraries that are preloaded already stay, behind ours.

    Raises:
        MachineError: The package was built without the library.
        UsageError: The runtime directory's path is too long for the addresses of its sockets.
    """
    if len(os.fsencode(run.absolute())) > MAX_RUN:
        raise UsageError(
            f"the runtime directory `{run}` has more than {MAX_RUN} bytes in its path",
            hint="set ALCOVE_RUN to a shorter one: its sockets have addresses of at most 107 bytes",
        )
    library = str(preload_library(arch))
    before = inherited.get("LD_PRELOAD", "")
    return {
        **inherited,
        "ALCOVE_RUN": str(run.absolute()),
        "LD_PRELOAD": f"{library}:{before}" if before else library,
    }
