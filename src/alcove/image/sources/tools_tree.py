"""The tools tree: a QEMU that can host an enclave, and the default guest kernel, from Debian's signed packages.

mmdebstrap downloads and unpacks; no maintainer script runs and nothing is installed on the host (design decision 4).
Its tar stream is read here, and only what an enclave needs is kept: QEMU with exactly the libraries it links,
firmware, the kernel and a handful of modules.

1. Take the lock, so that parallel runs build once; a complete tree ends here.
2. mmdebstrap: Debian 13 with backports and security, every index checked against Debian's keyring.
3. Keep files by name (``_KEEP``), in a directory beside the final one.
4. Drop libraries that QEMU does not link.
5. Find the modules and their load order; write ``manifest.json``.
6. Rename into place: a tree is complete or absent.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import unquote

from alcove.errors import MachineError
from alcove.image.sources.kernel_modules import ENCLAVE_MODULES, decompress, dependencies, load_order

FORMAT: Final = 1  # of manifest.json; a tree of another format is built anew
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MAX_UNPACKED: Final = 1 << 30  # bytes kept; the tree has about 100 MB

_QEMU: Final = "usr/bin/qemu-system-x86_64"
_LOADER: Final = "usr/lib64/ld-linux-x86-64.so.2"
_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
_PACKAGES: Final = "alcove-packages"
_INCLUDE: Final = ("qemu-system-x86", "linux-image-cloud-amd64")
# backports come from wherever mmdebstrap takes the release itself
_BACKPORTS: Final = (
    "cd \"$1/etc/apt\" && sed -n 's/ trixie main$/ trixie-backports main/p' sources.list >sources.list.d/backports.list"
)
_PINS: Final = r"Package: qemu-* seabios\nPin: release n=trixie-backports\nPin-Priority: 900\n"

# Firmware of -M microvm (devices.md §1.3): SeaBIOS with ACPI, qboot without; the others load a kernel.
_FIRMWARE: Final = ("kvmvapic", "linuxboot_dma", "multiboot_dma", "pvh")
_KEEP: Final = re.compile(
    rf"{_QEMU}|{_LOADER}|{_LIBRARIES}/[^/]+\.so(\.[^/]+)?|{_PACKAGES}|boot/(vmlinuz|config)-.+"
    rf"|usr/share/seabios/bios-microvm\.bin|usr/share/qemu/(({'|'.join(_FIRMWARE)})\.bin|qboot\.rom)"
    r"|usr/lib/modules/[^/]+/(modules\.builtin|kernel/(drivers/virtio|drivers/misc|net/vmw_vsock)/.+)"
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
    root = state / "tools"
    if (tree := ToolsTree.load(root)) and not upgrade:
        return tree
    state.mkdir(parents=True, exist_ok=True)
    with _locked(state / "tools.lock"):
        if (tree := ToolsTree.load(root)) and not upgrade:  # another run built it while this one waited
            return tree
        with tempfile.TemporaryDirectory(prefix=".tools-", dir=state) as scratch:
            fresh = Path(scratch) / "tools"
            fresh.mkdir(mode=0o755)
            _unpack(fresh, progress)
            progress("checking what was unpacked")
            _drop_unlinked_libraries(fresh)
            manifest = _manifest(fresh)
            (fresh / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
            if root.exists():
                root.rename(Path(scratch) / "old")
            fresh.rename(root)
    tree = ToolsTree.load(root)
    if tree is None:  # pragma: no cover - it was written a moment ago
        raise MachineError(f"{root} vanished while it was built")
    return tree


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mmdebstrap_command(mirror: str | None, *, keyring: Path = KEYRING, root: bool) -> list[str]:
    """The command whose standard output is the tar stream. Without root it needs user namespaces (``/etc/subuid``).

    Args:
        mirror: A mirror's URI, or None for Debian's own, updates and security included.
        keyring: What every package index must be signed with.
        root: Whether this process is root.
    """
    return [
        "mmdebstrap",
        "--quiet",
        f"--mode={'root' if root else 'unshare'}",
        "--variant=extract",  # download and unpack: no package's script runs
        "--format=tar",
        "--architectures=amd64",
        f"--keyring={keyring}",
        f"--include={','.join(_INCLUDE)}",
        '--aptopt=APT::Install-Recommends "false"',
        '--setup-hook=mkdir -p "$1/etc/apt/preferences.d"',
        f"--setup-hook=printf '{_PINS}' >\"$1/etc/apt/preferences.d/alcove\"",
        f"--setup-hook={_BACKPORTS}",
        f'--extract-hook=ls "$1/var/cache/apt/archives" >"$1/{_PACKAGES}"',
        "trixie",
        "-",
        *([mirror] if mirror else []),
    ]


def _unpack(root: Path, progress: Callable[[str], None]) -> None:
    mirror = os.environ.get("ALCOVE_DEBIAN_MIRROR")
    if shutil.which("mmdebstrap") is None:
        raise MachineError("mmdebstrap is not installed", hint="apt-get install mmdebstrap")
    if not KEYRING.exists():
        raise MachineError(f"{KEYRING} is missing", hint="apt-get install debian-archive-keyring")
    progress("downloading QEMU and the guest kernel from Debian 13 (about 100 MB)")
    command = mmdebstrap_command(mirror, root=os.getuid() == 0)
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
            broken = _extract(process.stdout, root)
        if process.returncode or broken:
            log.seek(0)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.startswith(("E:", "W:"))]
            why = "; ".join(lines[-4:]) or str(broken)
            raise MachineError(
                f"mmdebstrap failed with status {process.returncode}: {why}",
                hint="is the mirror reachable? ALCOVE_DEBIAN_MIRROR chooses another",
            )


def _extract(stream: IO[bytes] | None, root: Path) -> tarfile.TarError | None:
    """Keep the wanted members of the stream; a broken stream is returned, as mmdebstrap's own words say more."""
    kept = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if not _KEEP.fullmatch(name) or not (member.isreg() or member.issym() or member.islnk()):
                    continue
                kept += member.size
                if kept > MAX_UNPACKED:
                    raise MachineError("the packages unpack to more than 1 GiB")
                _place(archive, member, root / name)
    except tarfile.TarError as error:
        return error
    return None


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """One member, by hand: Debian 12's tarfile has no filters, and ``_KEEP`` has vouched for the name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        target.symlink_to(member.linkname)
    elif member.islnk():
        os.link(target.parents[len(Path(member.name.removeprefix("./")).parents) - 1] / member.linkname, target)
    elif source := archive.extractfile(member):
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
        target.chmod(0o755 if member.mode & 0o111 else 0o644)


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


def _manifest(root: Path) -> dict[str, Any]:
    """What the tree holds, by names relative to it, with versions and SHA-256 digests."""
    debs = [line.split("_") for line in (root / _PACKAGES).read_text().splitlines() if line.endswith(".deb")]
    (root / _PACKAGES).unlink()
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise MachineError(f"expected one kernel among the packages and found {len(kernels)}")
    release = kernels[0].name.removeprefix("vmlinuz-")
    modules = _modules(root / "usr/lib/modules" / release)
    config = root / f"boot/config-{release}"
    files = [root / _QEMU, kernels[0], config, *modules]
    return {
        "format": FORMAT,
        "kernel_release": release,
        "qemu": _QEMU,
        "kernel": str(kernels[0].relative_to(root)),
        "kernel_config": str(config.relative_to(root)),
        "modules": [str(path.relative_to(root)) for path in modules],
        "sha256": {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "packages": {deb[0]: unquote(deb[1]) for deb in debs},
    }


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
