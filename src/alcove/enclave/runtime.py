"""The runtime directory: made when it is missing, and refused when it is not ours."""

from __future__ import annotations

import os

from alcove.enclave.paths import Paths
from alcove.errors import MachineError


def prepare(paths: Paths) -> None:
    """Make the runtime directories: others may look, only the owner may enter an enclave or listen for one.

    Raises:
        MachineError: E07 when the runtime directory cannot be made.
    """
    try:
        paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
        if (found := paths.run.lstat()).st_uid != os.getuid() or found.st_mode & 0o022:
            raise MachineError(
                f"the runtime directory `{paths.run}` is not this user's alone",
                code="E07",
                hint="set ALCOVE_RUN to a directory of your own that others cannot write to",
            )
        paths.enclaves.mkdir(mode=0o755, exist_ok=True)
        paths.cids.mkdir(mode=0o755, exist_ok=True)
        paths.ports.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"cannot make the runtime directory `{paths.run}`: {error.strerror}",
            code="E07",
            hint="check who owns it, or set ALCOVE_RUN",
        ) from None
