"""Root file systems for enclaves, made of Debian's packages without a container registry and without privileges.

mmdebstrap fetches and checks the packages (apt verifies their signatures) and unpacks them, running nothing. What an
enclave does not need is left out. Python's modules are compiled, and of Debian's only that stays: a quarter of the size
is their sources. The same packages give the same bytes; for the same packages next year name a mirror that keeps
today's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import alcove
from alcove.errors import MachineError, UsageError
from alcove.scaffold.imports import closure
from alcove.scaffold.kits import BASE, FILES, KITS, MODULES, SERVICES, Kit

SUITE: Final = "trixie"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
EPOCH: Final = 1735689600  # every file's time; any constant does


def make(target: Path, kits: Sequence[str], *, packages: Sequence[str] = (), mirror: str | None = None) -> None:
    """Write a root file system as a tar file.

    Args:
        target: The file; replaced when it is there.
        kits: Names of `KITS`; python comes with acm, with boto3 and with node, whose KMS proxy is written in it.
        packages: More of Debian's packages, which are kept whole.
        mirror: Of Debian; its own when None.

    Raises:
        UsageError: There is no such kit, or no directory for the file.
        MachineError: A program is missing or failed.
    """
    unknown = [name for name in kits if name not in KITS]
    if unknown:
        raise UsageError(f"there is no kit {unknown[0]}", hint=f"one of {', '.join(KITS)}")
    if not target.absolute().parent.is_dir():  # said before a minute's work, not after it
        raise UsageError(f"`{target.absolute().parent}` is not a directory", hint="make it first", code="E19")
    names = dict.fromkeys([*(["python"] if {"acm", "boto3", "node"} & set(kits) else []), *kits])
    chosen = [BASE, *(KITS[name] for name in names)]
    with tempfile.TemporaryDirectory(prefix="rootfs-") as name:
        everything, root = Path(name) / "everything", Path(name) / "root"
        everything.mkdir()
        root.mkdir()
        _fetch(Path(name) / "debian.tar", [*_flat(kit.packages for kit in chosen), *packages], mirror)
        _run(["tar", "-C", everything, "--exclude=./dev/*", "-xf", Path(name) / "debian.tar"])
        _select(everything, root, [*_flat(kit.keep for kit in chosen), *(["*"] if packages else [])])
        _drop(root, list(_flat(kit.drop for kit in chosen)))
        _libraries(everything, root, list(_flat(kit.programs for kit in chosen)))
        _configure(root)
        _trust(everything, root)
        if "shell" in names:
            _shell(root)
        if "python" in names:
            _python(root, chosen)
        _pack(root, target)


def _flat(parts: Iterable[Iterable[str]]) -> Iterable[str]:
    return (item for part in parts for item in part)


def _fetch(target: Path, packages: Sequence[str], mirror: str | None) -> None:
    """Debian's packages, verified and unpacked, as a tar file."""
    if shutil.which("mmdebstrap") is None:
        raise MachineError("mmdebstrap is missing", hint="apt-get install mmdebstrap")
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--keyring={KEYRING}", f"--include={','.join(packages)}"]
    _run([*command, SUITE, target, *([mirror] if mirror else [])], SOURCE_DATE_EPOCH=str(EPOCH))


def _run(command: Sequence[str | Path], **variables: str) -> str:
    done = subprocess.run(command, check=False, env=os.environ | variables, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise MachineError(
            f"`{Path(command[0]).name}` failed with status {done.returncode}", hint="its output is above"
        )
    return done.stdout


def _select(source: Path, root: Path, patterns: Iterable[str]) -> None:
    """Copy what stays."""
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            _copy(path, root / path.relative_to(source))


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(path, target, follow_symlinks=False)


def _drop(root: Path, patterns: Iterable[str]) -> None:
    places = (*root.glob("usr/lib/python3.*"), root / MODULES)
    for path in [path for pattern in patterns for place in places for path in place.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for data in (root / MODULES / "botocore/data").glob("*"):
        if data.is_dir() and data.name not in SERVICES:
            shutil.rmtree(data)


def _libraries(everything: Path, root: Path, patterns: Iterable[str]) -> None:
    """Copy the shared libraries that the programs load, as Debian's own loader finds them; a link with its target."""
    loaders = sorted(everything.glob("usr/lib/*-linux-gnu/ld-linux*.so.*"))
    places = ":".join(str(directory) for directory in sorted(everything.glob("usr/lib/*-linux-gnu")))
    found: set[Path] = set()
    for program in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        if program.is_symlink():
            continue
        for line in _run([loaders[0], "--library-path", places, "--list", program]).splitlines():
            _, arrow, rest = line.partition(" => ")
            if arrow and rest.startswith(f"{everything}/"):
                found.add(Path(rest.rpartition(" (")[0]))
    for library in sorted(found):
        _copy(library, root / library.relative_to(everything))
        real = library.resolve()
        _copy(real, root / real.relative_to(everything.resolve()))


def _configure(root: Path) -> None:
    """What programs look up, and no package's script has run to make: the user, the loopback's name."""
    for name, text in FILES.items():
        path = root / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "root").mkdir(exist_ok=True)


def _trust(everything: Path, root: Path) -> None:
    """The certificates of public authorities, as one file where OpenSSL looks; nothing has run that would make it."""
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    certificates = sorted(everything.glob("usr/share/ca-certificates/mozilla/*.crt"))
    bundle.write_bytes(b"".join(path.read_bytes() for path in certificates))
    (root / "usr/lib/ssl").mkdir(parents=True, exist_ok=True)
    (root / "usr/lib/ssl/cert.pem").symlink_to("/etc/ssl/certs/ca-certificates.crt")


def _shell(root: Path) -> None:
    (root / "usr/bin/sh").symlink_to("busybox")


def _python(root: Path, kits: Sequence[Kit]) -> None:
    """Alcove's modules and programs; every module compiled with the guest's own Python, through its own loader.

    Alcove's sources stay, for tracebacks; their compiled files are taken as they are at run time ("unchecked"). No
    chroot, hence no privileges. What the kits import is tried too: a library that was left out shows here.
    """
    commands = dict(_flat_pairs(kit.commands for kit in kits))
    for name, place in commands.items():
        module, _, function = place.partition(":")
        program = root / "usr/bin" / name
        program.write_text(f"#!/usr/bin/python3 -I\nfrom {module} import {function}\n\n{function}()\n")
        program.chmod(0o755)
    _install(root, [*(place.partition(":")[0] for place in commands.values()), *_flat(kit.modules for kit in kits)])
    for cache in list(root.rglob("__pycache__")):
        shutil.rmtree(cache)
    (loader,) = root.glob("usr/lib/*-linux-gnu/ld-linux*.so.*")
    (binary,) = root.glob("usr/bin/python3.*[0-9]")
    python: list[str | Path] = [loader, "--library-path", loader.parent, binary, "-B", "-S"]
    variables = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": str(EPOCH)}
    ours = root / MODULES / "alcove"
    trees = [*sorted(root.glob("usr/lib/python3.*")), *sorted({*(root / MODULES).iterdir()} - {ours})]
    compiler = [*python, "-m", "compileall", "-q", "-s", str(root), "-p", "/", "--invalidation-mode", "unchecked-hash"]
    _run([*compiler, ours], **variables)
    _run([*compiler, "-b", *trees], **variables)
    for source in [path for path in root.rglob("*.py") if path.with_suffix(".pyc").exists()]:
        source.unlink()
    for line in filter(None, (kit.imports for kit in kits)):
        _run([*python, "-c", line], **variables, PYTHONPATH=str(root / MODULES))


def _flat_pairs(parts: Iterable[Iterable[tuple[str, str]]]) -> Iterable[tuple[str, str]]:
    return (item for part in parts for item in part)


def _install(root: Path, programs: Sequence[str]) -> None:
    """Copy the SDK, the programs and all that they import from where this Python finds Alcove."""
    package = Path(alcove.__file__).parent

    def place(name: str) -> Path:
        path = package.joinpath(*name.split(".")[1:])
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    def read(name: str) -> str | None:
        path = place(name)
        return path.read_text() if path.is_file() else None

    def dotted(path: Path) -> str:
        return ".".join(("alcove", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")

    entries = [
        *programs,
        *(dotted(path) for pattern in ("sdk/**/*.py", "cli/inside*.py") for path in package.glob(pattern)),
    ]
    for name in sorted(closure(entries, read)):
        target = root / MODULES / place(name).relative_to(package.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place(name), target)


def _pack(root: Path, target: Path) -> None:
    """The tree as a tar file whose bytes depend on names, modes and contents alone."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = EPOCH
        if not entry.issym():
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        if entry.name == "tmp":
            entry.mode = 0o1777
        return entry

    part = target.with_name(f"{target.name}.part")
    with tarfile.open(part, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(root.rglob("*"), key=lambda found: PurePosixPath(found.relative_to(root)).parts):
            archive.add(path, str(path.relative_to(root)), recursive=False, filter=plain)
    part.replace(target)
