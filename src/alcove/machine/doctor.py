"""What this host has and lacks, as facts; the command line prints them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alcove.errors import MachineError
from alcove.machine.accelerator import choose_accelerator
from alcove.machine.argv import Qemu
from alcove.machine.process import jail_works
from alcove.machine.qemu import DEVICES, find_qemu

# command: Debian package, what it is for
PROGRAMS: Final = {
    "mmdebstrap": ("mmdebstrap", "unpacks the tools tree"),
    "skopeo": ("skopeo", "fetches container images"),
    "buildah": ("buildah", "builds Dockerfiles"),
    "busybox": ("busybox-static", "is in the demo's image"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One fact: its name, whether it is well, what was found, and what helps when it is not (None when well)."""

    name: str
    ok: bool
    detail: str
    hint: str | None = None


def examine(tree: Path, *, cache: Path | None = None) -> list[Check]:
    """Look at everything that an enclave on this host needs.

    Args:
        tree: Root of the tools tree, built or not.
        cache: File that keeps the accelerator's verdict, or None.
    """
    return [*_programs(), _jail(), _tree(tree), *_machine(tree, cache)]


def _programs() -> Iterator[Check]:
    for command, (package, purpose) in PROGRAMS.items():
        path = shutil.which(command)
        if path:
            yield Check(command, True, path)
        else:
            yield Check(command, False, f"missing; it {purpose}", f"apt-get install {package}")


def _jail() -> Check:
    if (path := shutil.which("bwrap")) is None:
        return Check("bwrap", False, "missing; it confines QEMU", "apt-get install bubblewrap")
    if (why := jail_works()) is not None:
        return Check("bwrap", False, why, "user namespaces must be allowed: sysctl kernel.unprivileged_userns_clone=1")
    return Check("bwrap", True, path)


def _tree(tree: Path) -> Check:
    if (tree / "manifest.json").is_file():
        return Check("tools tree", True, str(tree))
    return Check("tools tree", False, f"{tree} is not built", "run alcove setup")


def _machine(tree: Path, cache: Path | None) -> Iterator[Check]:
    try:
        qemu = find_qemu(tree)
    except MachineError as error:
        yield Check("qemu", False, error.message, error.hint)
        return
    yield Check("qemu", True, f"{'.'.join(map(str, qemu.version))} with {', '.join(DEVICES)} ({qemu.binary})")
    yield _accelerator(qemu, tree, cache)


def _accelerator(qemu: Qemu, tree: Path, cache: Path | None) -> Check:
    """TCG is no fault, only slow; so this check is always well and says why it is what it is."""
    kernel = next(iter(sorted((tree / "boot").glob("vmlinuz-*"))), None)
    accelerator, why = choose_accelerator(qemu, kernel=kernel, cache=cache)
    return Check("accelerator", True, f"{accelerator}: {why}")
