"""Compile the guest's init with the pinned compiler while the package is built.

hatchling calls the hook for wheels, source distributions and editable installs (``pyproject.toml``). The result lands
in ``src/alcove/guest/build/init-<arch>``, which the wheel ships. The compiler is the ``ziglang`` package: the same
version gives the same bytes on every machine and in every directory, and so the same PCR1 (design decision 5).

``python scripts/hatch_build.py`` does the same by hand.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ARCHITECTURES = ("x86_64", "aarch64")
# Nothing of the machine may reach the bytes: no paths, no build id, no symbols, no tuning for this CPU.
FLAGS = (
    "-std=gnu17", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=all", "-Wl,--build-id=none",
)  # fmt: skip


def compile_init(source: Path, output: Path, arch: str) -> None:
    """Compile one static init; the output appears whole or not at all.

    Raises:
        RuntimeError: The compiler is missing or refused the source; the message has its words.
    """
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-musl", *FLAGS]
    command += [f"-ffile-prefix-map={source.parent}=.", "-o", str(fresh), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    fresh.chmod(0o755)
    fresh.replace(output)


def build_all(root: Path) -> list[Path]:
    """Compile what is missing or older than its source, by content; return every binary."""
    source = root / "src/alcove/guest/init.c"
    build = root / "src/alcove/guest/build"
    build.mkdir(exist_ok=True)
    outputs = {arch: build / f"init-{arch}" for arch in ARCHITECTURES}
    stamp = build / "stamp"
    recipe = hashlib.sha256(source.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    if all(path.exists() for path in outputs.values()) and stamp.exists() and stamp.read_text() == recipe:
        return list(outputs.values())
    with ThreadPoolExecutor() as pool:
        for task in [pool.submit(compile_init, source, path, arch) for arch, path in outputs.items()]:
            task.result()
    stamp.write_text(recipe)
    return list(outputs.values())


class CustomBuildHook(BuildHookInterface[Any]):
    """What hatchling runs before it collects files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Compile both architectures for wheels; a source distribution carries the source."""
        if self.target_name == "wheel":
            build_all(Path(self.root))


if __name__ == "__main__":
    for path in build_all(Path(__file__).resolve().parent.parent):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")
