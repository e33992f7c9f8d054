"""Which sockets vsock is made of here."""

from __future__ import annotations

import enum
import os
import socket
from collections.abc import Mapping
from typing import Final

from alcove.enclave.paths import Paths
from alcove.errors import MachineError, UsageError

VARIABLE: Final = "ALCOVE_VSOCK"


class Transport(enum.Enum):
    """What is beneath a stream."""

    KERNEL = "kernel"  # AF_VSOCK: in every enclave, and on an AWS parent
    HYBRID = "hybrid"  # Unix sockets in the runtime directory: on an Alcove parent


def transport(environment: Mapping[str, str] | None = None) -> Transport:
    """Hybrid where there is a runtime directory of Alcove's, the kernel's where there is none.

    Args:
        environment: Variables to look at in place of this process's own; ALCOVE_VSOCK decides by itself.

    Raises:
        UsageError: ALCOVE_VSOCK is neither of the two.
        MachineError: There is neither a runtime directory nor vsock in the kernel.
    """
    variables = os.environ if environment is None else environment
    wanted = variables.get(VARIABLE)
    if wanted:
        try:
            return Transport(wanted)
        except ValueError:
            raise UsageError(f"{VARIABLE} is `{wanted}`; it can be `kernel` or `hybrid`") from None
    run = Paths.from_environment(variables).run
    if run.is_dir():
        return Transport.HYBRID
    if _kernel_has_vsock():
        return Transport.KERNEL
    raise MachineError(
        f"there is no vsock here: neither `{run}` nor AF_VSOCK in the kernel",
        hint="in an enclave load the kernel's vsock driver; on a parent start an enclave, or set ALCOVE_RUN",
    )


def _kernel_has_vsock() -> bool:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except (AttributeError, OSError):  # the former: not on Linux
        return False
    return True
