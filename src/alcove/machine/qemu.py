"""Find a QEMU that can host an enclave: the system's when it is new enough, else the tools tree's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from alcove.errors import MachineError
from alcove.machine.argv import Qemu

__all__ = ["DEVICES", "MIN_VERSION", "Qemu", "find_qemu", "missing_devices", "read_version"]

MIN_VERSION: Final = (10, 2, 0)  # devices.md §1.3: the first with a creatable vhost-user-test-device
DEVICES: Final = ("vhost-user-test-device", "vhost-user-vsock-device")
_TIMEOUT: Final = 20.0  # seconds for QEMU to print its version, on a busy machine
_HINT: Final = "run alcove setup, which unpacks QEMU into the state directory"


def find_qemu(tree: Path | None, cache: Path | None = None) -> Qemu:
    """The QEMU to use.

    Args:
        tree: Root of a tools tree, or None to look at the system only.
        cache: File in the state directory that keeps what was found, as long as the binary is the same; or None.

    Raises:
        MachineError: There is none that will do.
    """
    reasons: list[str] = []
    found = shutil.which("qemu-system-x86_64")
    candidates = [_system(Path(found))] if found else []
    if tree is not None and (tree / "usr/bin/qemu-system-x86_64").exists():
        candidates.append(_from_tree(tree))
    for candidate in candidates:
        if known := _remembered(candidate, cache):
            return _with_version(candidate, known)
        try:
            version = read_version(candidate)
            if version >= MIN_VERSION and not (missing := missing_devices(candidate)):
                _remember(candidate, version, cache)
                return _with_version(candidate, version)
        except MachineError as error:
            reasons.append(error.message)
            continue
        what = "is too old" if version < MIN_VERSION else f"lacks {', '.join(missing)}"
        reasons.append(f"{candidate.binary} {'.'.join(map(str, version))} {what}")
    why = "; ".join(reasons) or "none is installed and there is no tools tree"
    raise MachineError(f"no QEMU that can host an enclave: {why}", hint=_HINT)


def _key(qemu: Qemu) -> list[object]:
    """What changes when a binary is replaced; errors as in `Path.stat`."""
    files = [qemu.binary, *([qemu.loader] if qemu.loader else [])]
    return [[str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns] for path in files for stat in [path.stat()]]


def _remembered(qemu: Qemu, cache: Path | None) -> tuple[int, int, int] | None:
    """The version of a QEMU that was found good before."""
    try:
        kept = json.loads(cache.read_text()) if cache is not None else {}
        major, minor, micro = map(int, kept["version"])
        return (major, minor, micro) if kept["key"] == _key(qemu) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or not ours: look again


def _remember(qemu: Qemu, version: tuple[int, int, int], cache: Path | None) -> None:
    if cache is None:
        return
    fresh = cache.with_name(f".{cache.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # it only costs the next start some time
        fresh.write_text(json.dumps({"key": _key(qemu), "version": version}))
        fresh.replace(cache)


def _system(binary: Path) -> Qemu:
    return Qemu(binary, None, None, None, (), (0, 0, 0))


def _from_tree(tree: Path) -> Qemu:
    """Debian's layout, as the tools tree keeps it."""
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    return Qemu(
        binary=tree / "usr/bin/qemu-system-x86_64",
        loader=tree / "usr/lib64/ld-linux-x86-64.so.2",
        library_path=libraries,
        module_dir=libraries / "qemu",
        firmware=(tree / "usr/share/qemu", tree / "usr/share/seabios"),
        version=(0, 0, 0),
    )


def _with_version(qemu: Qemu, version: tuple[int, int, int]) -> Qemu:
    return Qemu(qemu.binary, qemu.loader, qemu.library_path, qemu.module_dir, qemu.firmware, version)


def read_version(qemu: Qemu) -> tuple[int, int, int]:
    """What ``--version`` says.

    Raises:
        MachineError: It does not start, or says nothing like a version.
    """
    status, output = _run(qemu, "--version")
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", output)
    if status or match is None:
        raise MachineError(f"{qemu.binary} does not start: {output.strip()[:200]}", hint=_HINT)
    return int(match[1]), int(match[2]), int(match[3])


def missing_devices(qemu: Qemu) -> tuple[str, ...]:
    """Devices of an enclave that this QEMU cannot create."""
    return tuple(name for name in DEVICES if _run(qemu, "-M", "none", "-device", f"{name},help")[0])


def _run(qemu: Qemu, *words: str) -> tuple[int, str]:
    command = [*qemu.command, *words]
    environment = {"PATH": os.defpath, **qemu.environment}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT, env=environment, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr
