"""A root file system in a directory as a container image without layers: `dir:ROOTFS`.

Names, modes, owners, times (in whole seconds), targets, device numbers and hard links are taken as they are. As in an
exported container there are no sockets. What is mounted below the directory stays out.

What such an image runs is in the file `ROOTFS.json` beside the directory: an image's `config` object, or a whole
configuration, as `skopeo inspect --config` prints it.

    /srv/app/          bin/server, etc/…
    /srv/app.json      {"Cmd": ["/bin/server", "--port", "80"], "Env": ["PATH=/bin"]}
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alcove.errors import ImageFormatError, InputError
from alcove.image.sources.container import PLATFORMS, Flattened, OnBytes, settings_of
from alcove.image.sources.limits import Budget, Limits
from alcove.image.sources.oci import MAX_JSON, parse_json
from alcove.image.sources.tree import MAX_DEPTH, Data, Node, new_directory

STAGE: Final = "reading the directory"
_TRANSPORT_MARK: Final = b"Directory Transport Version:"  # containers/image, directory/directory_dest.go

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RootDirectory:
    """An image made of a directory.

    Attributes:
        path: The directory.
        config: The image's configuration.
        note: Gets a line for each thing that is left out.
    """

    path: Path
    config: dict[str, Any]
    note: Note

    @property
    def digest(self) -> str:
        """Of the configuration, as for any image; it says nothing of the files, for there are no layers."""
        text = json.dumps(self.config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    @property
    def settings(self) -> dict[str, Any]:
        """The `config` object: Cmd, Entrypoint, Env and the like."""
        return settings_of(self.config)

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """None, for there are no layers."""
        return ()

    def flatten(self, directory: Path, limits: Limits, on_bytes: OnBytes) -> Flattened:  # noqa: ARG002
        """The directory's tree; nothing is written.

        Raises:
            InputError: E48 when something cannot be read.
            ImageFormatError: When a limit is reached.
        """
        walk = _Walk(os.lstat(self.path).st_dev, Budget(limits), self.note, on_bytes)
        root = new_directory()
        walk.fill(root, os.fsencode(self.path))
        return Flattened(root, walk.files, os.O_NOFOLLOW)


def is_skopeo_directory(path: Path) -> bool:
    """Whether it is what skopeo means by `dir:`, an image in pieces, and not a root file system."""
    try:
        with (path / "version").open("rb") as file:
            return file.read(len(_TRANSPORT_MARK)) == _TRANSPORT_MARK
    except OSError:
        return False


def open_directory(path: Path, architecture: str, note: Note) -> RootDirectory:
    """The image that a directory makes.

    Args:
        path: The directory.
        architecture: `x86_64` or `aarch64`: of the image, unless its configuration says otherwise.
        note: Gets a line for each thing that is left out.

    Raises:
        InputError: E48 when there is no such directory, or nothing that says what it runs.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  # `a/..` is not resolved: the file is beside the name
    if not path.is_dir():
        raise InputError(f"`{path}` is not a directory", hint="dir: takes the root of a file system", code="E48")
    beside = path.with_name(path.name + ".json")
    try:
        with beside.open("rb") as file:
            data = file.read(MAX_JSON)
    except OSError as error:
        hint = f'write it to {beside}: {{"Cmd": ["/bin/app"], "Env": ["PATH=/usr/bin:/bin"]}}'
        reason = "is not there" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise InputError(f"what the image runs is not known: `{beside}` {reason}", hint=hint, code="E48") from None
    found = parse_json(data, beside.name)
    config = found if isinstance(found.get("config"), dict) else {"config": found}
    return RootDirectory(path.resolve(), {"architecture": PLATFORMS[architecture], "os": "linux"} | config, note)


@dataclass(slots=True)
class _Walk:
    """A directory that is read."""

    device: int
    budget: Budget
    note: Note
    on_bytes: OnBytes
    files: list[bytes]
    links: dict[int, Node]
    size: int

    def __init__(self, device: int, budget: Budget, note: Note, on_bytes: OnBytes) -> None:
        self.device, self.budget, self.note, self.on_bytes = device, budget, note, on_bytes
        self.files, self.links, self.size = [], {}, 0

    def fill(self, root: Node, path: bytes) -> None:
        """Put what is in the directory at `path` into `root`."""
        todo = [(root, path, 0)]
        while todo:
            node, here, depth = todo.pop()
            if depth > MAX_DEPTH:
                raise ImageFormatError(f"{os.fsdecode(here)[:80]} is too deep", field="dir")
            for entry, status, target in _entries(here):
                child = self._node(entry, status, target)
                if child is None:
                    continue
                node.children[entry.name] = child
                if child.is_dir and status.st_dev == self.device:
                    todo.append((child, entry.path, depth + 1))

    def _node(self, entry: os.DirEntry[bytes], status: os.stat_result, target: bytes) -> Node | None:
        if stat.S_ISSOCK(status.st_mode):
            self.note(f"note: {os.fsdecode(entry.path)} is a socket and is left out")
            return None
        if stat.S_ISDIR(status.st_mode) and status.st_dev != self.device:
            self.note(f"note: {os.fsdecode(entry.path)} is another file system and is left empty")
        linked = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode) and status.st_dev == self.device
        if linked and status.st_ino in self.links:
            return self.links[status.st_ino]
        node = self._new(entry, status, target)
        if linked:
            self.links[status.st_ino] = node
        return node

    def _new(self, entry: os.DirEntry[bytes], status: os.stat_result, target: bytes) -> Node:
        is_device = stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)
        self.budget.spend(2 * len(entry.path) + len(target))
        data = None
        if stat.S_ISREG(status.st_mode) and status.st_size:
            data = Data(len(self.files), 0, status.st_size)
            self.files.append(entry.path)
            self.size += status.st_size
            self.on_bytes(STAGE, self.size, None)
        return Node(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime=status.st_mtime_ns // 1_000_000_000,
            rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
            target=target,
            data=data,
        )


def _entries(directory: bytes) -> Iterator[tuple[os.DirEntry[bytes], os.stat_result, bytes]]:
    """What a directory holds: entry, attributes, and target of a symbolic link."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                target = os.readlink(entry.path) if entry.is_symlink() else b""  # noqa: PTH115  # the path is bytes
                yield entry, entry.stat(follow_symlinks=False), target
    except OSError as error:
        name = os.fsdecode(error.filename or directory)
        hint = "building from a directory needs the right to read all of it"
        raise InputError(f"cannot read `{name}`: {error.strerror}", hint=hint, code="E48") from None
