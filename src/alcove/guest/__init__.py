"""What runs first inside an enclave: our own init (``init.c``), and the command line its kernel gets.

``scripts/hatch_build.py`` compiles the init when the package is built.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from alcove.errors import MachineError

# AWS's command line (eif.md §9), fitted to microvm and Debian's kernel. It is measured (PCR0, PCR1): never change it
# lightly. reboot=t panic=-1: a guest that is done, or dead, ends QEMU at once instead of after 30 s; reboot=k needs a
# keyboard controller, which microvm lacks, as do the i8042.* words. nomodules says nothing to a kernel.
DEFAULT_CMDLINE: Final = "reboot=t panic=-1 pci=off console=ttyS0 random.trust_cpu=on"


def init_binary(arch: str) -> Path:
    """The compiled init for ``x86_64`` or ``aarch64``.

    Raises:
        MachineError: The package was built without it.
    """
    path = Path(str(resources.files(__name__))) / "build" / f"init-{arch}"
    if not path.is_file():
        raise MachineError(
            f"the guest init for {arch} is not built",
            hint="install the package (make setup), or run python scripts/hatch_build.py",
        )
    return path
