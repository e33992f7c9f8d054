"""buildah's storage in a directory of its own, for the tests; and trees as text, to be compared."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alcove.image.sources.container import Flattened
from alcove.image.sources.tree import walk


@dataclass(frozen=True)
class Storage:
    """A storage, and the environment in which buildah, skopeo and our own code see it and no other.

    Attributes:
        directory: Where it is, with a home and a runtime directory beside it.
        driver: `vfs`, or `overlay`.
    """

    directory: Path
    driver: str = "vfs"

    def __post_init__(self) -> None:
        for name in ("home", "runtime", "tmp"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        graph, run = self.directory / "graph", self.directory / "run"
        text = f'[storage]\ndriver = "{self.driver}"\ngraphroot = "{graph}"\nrunroot = "{run}"\n'
        (self.directory / "storage.conf").write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the machine's own but its programs."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory / "home"),
            "XDG_RUNTIME_DIR": str(self.directory / "runtime"),
            "TMPDIR": str(self.directory / "tmp"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }

    def run(self, *argv: str | Path) -> str:
        """Run a program; what it printed."""
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout.strip()

    def works(self) -> bool:
        """Whether buildah can use the driver here."""
        argv = ["buildah", "info"]
        return not subprocess.run(argv, env=self.environment, capture_output=True, timeout=60, check=False).returncode

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The file system that buildah makes of an image."""
        container = self.run("buildah", "from", "--pull=false", image)
        try:
            yield Path(self.run("buildah", "mount", container))
        finally:
            self.run("buildah", "umount", container)
            self.run("buildah", "rm", container)

    def close(self) -> None:
        """Take all images away, and with them what is mounted."""
        self.run("buildah", "rmi", "--all", "--force")


def flat_lines(flattened: Flattened) -> list[str]:
    """A line for each name of a flattened image."""
    first: dict[int, str] = {}
    made = []
    for path, node in walk(flattened.root):
        name = os.fsdecode(path).rstrip("/")
        content = b"".join(flattened.read(node.data)) if node.data else b""
        same = first.setdefault(id(node), name)
        made.append(_line(name, (node.mode, node.uid, node.gid, node.mtime), node.rdev, content or node.target, same))
    return sorted(made)


def disk_lines(directory: Path) -> list[str]:
    """The same for a directory, by what the kernel says of it."""
    first: dict[int, str] = {}
    made = []
    for path in sorted(directory.rglob("*"), key=lambda path: _order(path.relative_to(directory))):
        status, name = path.lstat(), str(path.relative_to(directory))
        content = os.fsencode(path.readlink()) if path.is_symlink() else b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        same = first.setdefault(status.st_ino, name)
        is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
        device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0)
        owned = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns // 1_000_000_000)
        made.append(_line(name, owned, device, content, same))
    return sorted(made)


def _order(path: Path) -> list[bytes]:
    return [os.fsencode(part) for part in path.parts]


def _line(name: str, owned: tuple[int, int, int, int], device: tuple[int, int], content: bytes, same: str) -> str:
    mode, uid, gid, mtime = owned
    text = f"{name} {mode:06o} {uid}:{gid} {mtime if not stat.S_ISLNK(mode) else '-'} {device[0]}:{device[1]}"
    return f"{text} {hashlib.sha256(content).hexdigest()[:16]}" + (f" = {same}" if same != name else "")
