"""Files out of Debian's signed packages, without installing anything.

mmdebstrap downloads and unpacks; no maintainer script runs, whatever the packages' architecture (design decision 4).
Its tar stream is read here, and only files that a recipe names are kept. Every package index is checked against
Debian's keyring.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import unquote

from alcove.errors import MachineError
from alcove.image.sources.programs import bound_to_us

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MAX_UNPACKED: Final = 1 << 30  # bytes kept; the tools tree has about 100 MB
SUITE: Final = "trixie"
PACKAGE_LIST: Final = "alcove-packages"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to take from Debian.

    Attributes:
        architecture: Debian's name of it, such as `arm64`.
        include: Packages; what they depend on comes along.
        keep: Names of the files to keep, without a leading slash.
        hooks: Further options of mmdebstrap.
        what: For people: what is downloaded.
    """

    architecture: str
    include: tuple[str, ...]
    keep: re.Pattern[str]
    hooks: tuple[str, ...]
    what: str


def mmdebstrap_command(recipe: Recipe, mirror: str | None, *, keyring: Path, root: bool) -> list[str]:
    """The command whose standard output is the tar stream. Without root it needs user namespaces (``/etc/subuid``).

    Args:
        recipe: What to take.
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
        f"--architectures={recipe.architecture}",
        f"--keyring={keyring}",
        f"--include={','.join(recipe.include)}",
        '--aptopt=APT::Install-Recommends "false"',
        *recipe.hooks,
        f'--extract-hook=ls "$1/var/cache/apt/archives" >"$1/{PACKAGE_LIST}"',
        SUITE,
        "-",
        *([mirror] if mirror else []),
    ]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, so that parallel runs build once."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpack(recipe: Recipe, root: Path, progress: Callable[[str], None]) -> dict[str, str]:
    """Put the files of a recipe below `root`; versions of the packages by name.

    Raises:
        MachineError: mmdebstrap is missing or failed.
    """
    if shutil.which("mmdebstrap") is None:
        raise MachineError("mmdebstrap is not installed", hint="apt-get install mmdebstrap")
    if not KEYRING.exists():
        raise MachineError(f"{KEYRING} is missing", hint="apt-get install debian-archive-keyring")
    progress(f"downloading {recipe.what}")
    mirror = os.environ.get("ALCOVE_DEBIAN_MIRROR")
    _run(mmdebstrap_command(recipe, mirror, keyring=KEYRING, root=os.getuid() == 0), recipe, root)
    names = root / PACKAGE_LIST
    debs = [line.split("_") for line in names.read_text().splitlines() if line.endswith(".deb")]
    names.unlink()
    return {deb[0]: unquote(deb[1]) for deb in debs}


def _run(command: list[str], recipe: Recipe, root: Path) -> None:
    with tempfile.TemporaryFile() as log:
        # a signal may end us before we know the process
        bound = bound_to_us(os.environ.get("PATH", os.defpath))
        process = subprocess.Popen([*bound, *command], stdout=subprocess.PIPE, stderr=log)
        try:
            broken = _extract(process.stdout, root, recipe.keep)
        except BaseException:
            process.terminate()  # it removes its own temporary files
            raise
        finally:
            if process.stdout:
                process.stdout.close()
            process.wait()
        if process.returncode or broken:
            log.seek(0)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.startswith(("E:", "W:"))]
            why = "; ".join(lines[-4:]) or str(broken)
            raise MachineError(
                f"mmdebstrap failed with status {process.returncode}: {why}",
                hint="is the mirror reachable? ALCOVE_DEBIAN_MIRROR chooses another",
            )


def _extract(stream: IO[bytes] | None, root: Path, keep: re.Pattern[str]) -> tarfile.TarError | None:
    """Keep the wanted members of the stream; a broken stream is returned, as mmdebstrap's own words say more."""
    kept = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                wanted = name == PACKAGE_LIST or keep.fullmatch(name)
                if not wanted or not (member.isreg() or member.issym() or member.islnk()):
                    continue
                kept += member.size
                if kept > MAX_UNPACKED:
                    raise MachineError("the packages unpack to more than 1 GiB")
                _place(archive, member, root / name)
    except tarfile.TarError as error:
        return error
    return None


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """One member, by hand: Debian 12's tarfile has no filters, and the recipe has vouched for the name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        target.symlink_to(member.linkname)
    elif member.islnk():
        os.link(target.parents[len(Path(member.name.removeprefix("./")).parents) - 1] / member.linkname, target)
    elif source := archive.extractfile(member):
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
        target.chmod(0o755 if member.mode & 0o111 else 0o644)
