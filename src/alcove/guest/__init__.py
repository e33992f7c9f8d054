"""What runs first inside an enclave: our own init (``init.c``), and the command line its kernel gets.

``scripts/hatch_build.py`` compiles the init when the package is built.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from alcove.errors import MachineError

# AWS's command lines (eif.md §9), fitted to our machines and Debian's kernel. They are measured (PCR0, PCR1): never
# change one lightly. reboot=t panic=-1: a guest that is done, or dead, ends QEMU at once instead of after 30 s;
# reboot=k needs a keyboard controller, which microvm lacks, as do the i8042.* words, and arm64 asks its firmware.
# nomodules says nothing to a kernel. An arm64 machine has its console at ttyS0 (Nitro) or at ttyAMA0
# (QEMU's virt); the name that is not there is passed over.
DEFAULT_CMDLINES: Final = {
    "x86_64": "reboot=t panic=-1 pci=off console=ttyS0 random.trust_cpu=on",
    "aarch64": "panic=-1 pci=off console=ttyAMA0 console=ttyS0 random.trust_cpu=on",
}


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
