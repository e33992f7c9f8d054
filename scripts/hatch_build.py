"""Compile our C with the pinned compiler while the package is built: the guest's init, and the preload library.

hatchling calls the hook for wheels, source distributions and editable installs (``pyproject.toml``). The results land
in ``build/`` beside their sources, which the wheel ships. The compiler is the ``ziglang`` package: the same version
gives the same bytes on every machine and in every directory, and so the same PCR1 (design decision 5).

``python scripts/hatch_build.py`` does the same by hand.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ARCHITECTURES = ("x86_64", "aarch64")
# Nothing of the machine may reach the bytes: no paths, no build id, no symbols, no tuning for this CPU.
FLAGS = ("-std=gnu17", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=all", "-Wl,--build-id=none")


class Product(NamedTuple):
    """What becomes of the C files of a directory: `name` has the architecture in it, `target` is the compiler's."""

    directory: str
    name: str
    target: str
    flags: tuple[str, ...]


INIT = Product("src/alcove/guest", "init-{}", "{}-linux-musl", ("-static",))
# Loads into programs on any glibc from 2.28 on: Debian 10, RHEL 8, Amazon Linux 2023.
PRELOAD = Product(
    "src/alcove/hostvsock", "preload-{}.so", "{}-linux-gnu.2.28", ("-shared", "-fPIC", "-fvisibility=hidden", "-ldl")
)


def compile_c(product: Product, directory: Path, output: Path, arch: str) -> None:
    """Compile the C files of a directory into one; the output appears whole or not at all.

    Raises:
        RuntimeError: The compiler is missing or refused a source; the message has its words.
    """
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", product.target.format(arch), *FLAGS, *product.flags]
    command += [f"-ffile-prefix-map={directory}=.", "-o", str(fresh), *map(str, sorted(directory.glob("*.c")))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    fresh.chmod(0o755)
    fresh.replace(output)


def build(root: Path, product: Product) -> list[Path]:
    """Compile a product for every architecture if something is missing or its sources have changed, by content."""
    directory = root / product.directory
    made = directory / "build"
    made.mkdir(exist_ok=True)
    outputs = {arch: made / product.name.format(arch) for arch in ARCHITECTURES}
    stamp = made / "stamp"
    sources = [*sorted(directory.glob("*.[ch]")), Path(__file__)]
    recipe = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    if all(path.exists() for path in outputs.values()) and stamp.exists() and stamp.read_text() == recipe:
        return list(outputs.values())
    with ThreadPoolExecutor() as pool:
        for task in [pool.submit(compile_c, product, directory, path, arch) for arch, path in outputs.items()]:
            task.result()
    stamp.write_text(recipe)
    return list(outputs.values())


def build_all(root: Path) -> list[Path]:
    """Build every product; return every file."""
    return [path for product in (INIT, PRELOAD) for path in build(root, product)]


class CustomBuildHook(BuildHookInterface[Any]):
    """What hatchling runs before it collects files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Compile both architectures for wheels; a source distribution carries the source."""
        if self.target_name == "wheel":
            build_all(Path(self.root))


if __name__ == "__main__":
    for path in build_all(Path(__file__).resolve().parent.parent):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")
