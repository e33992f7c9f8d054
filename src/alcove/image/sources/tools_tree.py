"""The tools tree: a QEMU that can host an enclave, and the default guest kernel, from Debian's signed packages.

A kernel tree is a smaller one, with the guest kernel of another architecture and its modules alone: images are built
for a machine that is not this one, and nothing of them is run here.

1. Take the lock, so that parallel runs build once; a complete tree ends here.
2. Unpack from Debian 13, with backports for QEMU (``debian``), in a directory beside the final one.
3. Drop libraries that QEMU does not link; bring an arm64 kernel into the form an enclave image has.
4. Find the modules and their load order; write ``manifest.json``.
5. Rename into place: a tree is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alcove.errors import MachineError
from alcove.image.sources.arm64_image import enclave_image
from alcove.image.sources.debian import Recipe, locked, unpack
from alcove.image.sources.kernel_modules import ENCLAVE_MODULES, decompress, dependencies, load_order

FORMAT: Final = 1  # of manifest.json; a tree of another format is built anew
DEBIAN_NAMES: Final = {"x86_64": "amd64", "aarch64": "arm64"}

_QEMU: Final = "usr/bin/qemu-system-x86_64"
_LOADER: Final = "usr/lib64/ld-linux-x86-64.so.2"
_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
# backports come from wherever mmdebstrap takes the release itself
_BACKPORTS: Final = (
    "cd \"$1/etc/apt\" && sed -n 's/ trixie main$/ trixie-backports main/p' sources.list >sources.list.d/backports.list"
)
_PINS: Final = r"Package: qemu-* seabios\nPin: release n=trixie-backports\nPin-Priority: 900\n"

# Firmware of -M microvm (devices.md §1.3): SeaBIOS with ACPI, qboot without; the others load a kernel.
_FIRMWARE: Final = ("kvmvapic", "linuxboot_dma", "multiboot_dma", "pvh")
_KERNEL_FILES: Final = (
    r"boot/(vmlinuz|config)-.+"
    r"|usr/lib/modules/[^/]+/(modules\.builtin|kernel/(drivers/virtio|drivers/misc|net/vmw_vsock)/.+)"
)
_QEMU_FILES: Final = (
    rf"{_QEMU}|{_LOADER}|{_LIBRARIES}/[^/]+\.so(\.[^/]+)?"
    rf"|usr/share/seabios/bios-microvm\.bin|usr/share/qemu/(({'|'.join(_FIRMWARE)})\.bin|qboot\.rom)"
)
TOOLS: Final = Recipe(
    architecture="amd64",
    include=("qemu-system-x86", "linux-image-cloud-amd64"),
    keep=re.compile(f"{_QEMU_FILES}|{_KERNEL_FILES}"),
    hooks=(
        '--setup-hook=mkdir -p "$1/etc/apt/preferences.d"',
        f"--setup-hook=printf '{_PINS}' >\"$1/etc/apt/preferences.d/alcove\"",
        f"--setup-hook={_BACKPORTS}",
    ),
    what="QEMU and the guest kernel from Debian 13 (about 100 MB)",
)


def kernel_recipe(architecture: str) -> Recipe:
    """What a kernel tree for `x86_64` or `aarch64` is made of."""
    name = DEBIAN_NAMES[architecture]
    return Recipe(
        architecture=name,
        include=(f"linux-image-cloud-{name}",),
        keep=re.compile(_KERNEL_FILES),
        hooks=(),
        what=f"the {architecture} guest kernel from Debian 13 (about 35 MB)",
    )


@dataclass(frozen=True, slots=True)
class ToolsTree:
    """A complete tools tree. Modules are compressed files in load order; the manifest is the parsed JSON."""

    root: Path
    kernel: Path
    kernel_config: Path
    modules: tuple[Path, ...]
    manifest: dict[str, Any]

    @classmethod
    def load(cls, root: Path) -> ToolsTree | None:
        """The tree at a path, or None when there is none, or one of another format."""
        try:
            manifest = json.loads((root / "manifest.json").read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            return None
        modules = tuple(root / name for name in manifest["modules"])
        return cls(root, root / manifest["kernel"], root / manifest["kernel_config"], modules, manifest)


def ensure_tools_tree(state: Path, progress: Callable[[str], None], *, upgrade: bool = False) -> ToolsTree:
    """Return ``<state>/tools``, building it first when it is missing.

    Args:
        state: The state directory; made when missing.
        progress: Called with one line for every step that takes time.
        upgrade: Build anew from what Debian has now. A new kernel changes PCR0 and PCR1 of images built after it.

    Raises:
        MachineError: mmdebstrap is missing or failed, or the packages hold less than an enclave needs.
    """
    return _ensure(state / "tools", TOOLS, progress, upgrade=upgrade)


def ensure_kernel_tree(
    state: Path, architecture: str, progress: Callable[[str], None], *, upgrade: bool = False
) -> ToolsTree:
    """Return ``<state>/kernel-<architecture>``, a tree without QEMU, building it first when it is missing.

    Raises:
        MachineError: As for the tools tree.
    """
    return _ensure(state / f"kernel-{architecture}", kernel_recipe(architecture), progress, upgrade=upgrade)


def _ensure(root: Path, recipe: Recipe, progress: Callable[[str], None], *, upgrade: bool) -> ToolsTree:
    if (tree := ToolsTree.load(root)) and not upgrade:
        return tree
    root.parent.mkdir(parents=True, exist_ok=True)
    with locked(root.with_name(f"{root.name}.lock")):
        if (tree := ToolsTree.load(root)) and not upgrade:  # another run built it while this one waited
            return tree
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
            fresh = Path(scratch) / root.name
            fresh.mkdir(mode=0o755)
            packages = unpack(recipe, fresh, progress)
            progress("checking what was unpacked")
            manifest = _finish(fresh, recipe) | {"packages": packages}
            (fresh / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
            if root.exists():
                root.rename(Path(scratch) / "old")
            fresh.rename(root)
    tree = ToolsTree.load(root)
    if tree is None:  # pragma: no cover - it was written a moment ago
        raise MachineError(f"{root} vanished while it was built")
    return tree


def _finish(root: Path, recipe: Recipe) -> dict[str, Any]:
    """Bring what was unpacked into its form. The manifest: names relative to the tree, with SHA-256 digests."""
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise MachineError(f"expected one kernel among the packages and found {len(kernels)}")
    release = kernels[0].name.removeprefix("vmlinuz-")
    kernel = _as_image(kernels[0]) if recipe.architecture == "arm64" else kernels[0]
    if recipe is TOOLS:
        _drop_unlinked_libraries(root)
    programs = [root / _QEMU] if recipe is TOOLS else []
    modules = _modules(root / "usr/lib/modules" / release)
    config = root / f"boot/config-{release}"
    files = {str(path.relative_to(root)): path for path in (*programs, kernel, config, *modules)}
    return {
        "format": FORMAT,
        "kernel_release": release,
        **({"qemu": _QEMU} if programs else {}),
        "kernel": str(kernel.relative_to(root)),
        "kernel_config": str(config.relative_to(root)),
        "modules": [str(path.relative_to(root)) for path in modules],
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
    }


def _as_image(kernel: Path) -> Path:
    """The `Image` of an arm64 kernel, in its place."""
    image = kernel.with_name(kernel.name.replace("vmlinuz", "Image"))
    image.write_bytes(enclave_image(kernel.read_bytes()))
    kernel.unlink()
    return image


def _drop_unlinked_libraries(root: Path) -> None:
    """Leave what QEMU links: less to bind into the jail, and less disk. The loader itself says what that is."""
    libraries = root / _LIBRARIES
    (libraries / "qemu").mkdir(exist_ok=True)  # QEMU_MODULE_DIR: no module is needed, so none can be loaded
    command = [str(root / _LOADER), "--library-path", str(libraries), "--list", str(root / _QEMU)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or "not found" in done.stdout:
        raise MachineError(f"the unpacked QEMU does not link: {done.stdout}{done.stderr}".strip())
    linked = {Path(word) for word in done.stdout.split() if word.startswith(str(libraries))}
    keep = {path.resolve() for path in linked} | linked | {(root / _LOADER).resolve()}
    for path in libraries.iterdir():
        if not path.is_dir() and path not in keep:
            path.unlink()


def _modules(directory: Path) -> list[Path]:
    """The modules to load, in order; the others that were unpacked are removed."""
    builtin = {_stem(line) for line in (directory / "modules.builtin").read_text().splitlines()}
    files = {_stem(path.name): path for path in directory.rglob("*.ko*")}

    def depends(name: str) -> list[str]:
        if name not in files:
            raise MachineError(f"the kernel {directory.name} has no module {name}")
        return [n for n in dependencies(decompress(files[name].read_bytes())) if n not in builtin]

    order = load_order([n for n in ENCLAVE_MODULES if n not in builtin], depends)
    for name in files.keys() - set(order):
        files[name].unlink()
    return [files[name] for name in order]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
