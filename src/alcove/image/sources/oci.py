"""An OCI image layout on disk, flattened to one tree (OCI image specification 1.1, "image-layout.md", "layer.md").

1. `index.json` and the indexes that it names lead to one manifest: by tag, then by platform
2. indexes, manifest and configuration are bounded JSON blobs, whose digests are checked
3. the layers are made ready (`layers`): plain tar files whose digests have been checked
4. the members of each become a tree that refers to the file by offset: file data is never in memory
5. the layers' trees are laid on each other, lowest first

A layer that leaves out a directory's entry keeps the attributes the directory has below. A layer that has a name below
what is a symbolic link in a lower layer puts a directory in the link's place, as overlayfs does.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alcove.errors import ImageFormatError
from alcove.image.sources.container import ARCHITECTURES, PLATFORMS, Flattened, OnBytes, settings_of, silent
from alcove.image.sources.layers import Checksum, Layer, split_digest, use_layers
from alcove.image.sources.limits import Budget, Limits
from alcove.image.sources.tar import Kind, Member, members
from alcove.image.sources.tree import CHILDLESS, MAX_NAME, Data, Node, find, new_directory, overlay, parent, split

__all__ = ["ARCHITECTURES", "Flattened", "OciImage", "flatten", "load_layout"]

MAX_JSON: Final = 4 << 20  # OCI distribution specification, "Pushing Manifests": 4 MiB
MAX_LAYERS: Final = 512  # ours; Docker stops at 127
MAX_INDEXES: Final = 4  # ours: indexes within each other

_NAMES: Final = ("org.opencontainers.image.ref.name", "io.containerd.image.name")  # annotations.md; containerd
# Bytes that are read at a time to get at headers. Most files are small, so that several headers are in one piece; and
# a thread that often calls the kernel keeps those that want the interpreter's lock from getting it.
_HEADERS: Final = 1 << 16
_WHITEOUT: Final = b".wh."  # layer.md "Whiteouts"
_META: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"
_TYPES: Final = {
    Kind.FILE: stat.S_IFREG, Kind.SYMLINK: stat.S_IFLNK, Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK, Kind.DIRECTORY: stat.S_IFDIR, Kind.FIFO: stat.S_IFIFO,
}  # fmt: skip

_Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OciImage:
    """One image of a layout: its configuration and its layers, lowest first."""

    digest: str
    config: dict[str, Any]
    layers: tuple[Layer, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The `config` object: Cmd, Entrypoint, Env and the like; empty when the image has none."""
        return settings_of(self.config)

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Digests of the unpacked layers."""
        return tuple(layer.diff_id for layer in self.layers)

    def flatten(self, directory: Path, limits: Limits, on_bytes: OnBytes) -> Flattened:
        """As the function."""
        return flatten(self, directory, limits, on_bytes)


def load_layout(layout: Path, tag: str | None = None, architecture: str | None = None) -> OciImage:
    """One image of an OCI layout directory (steps 1 and 2).

    Args:
        layout: The directory.
        tag: Which image is meant; not needed when there is one.
        architecture: `x86_64` or `aarch64`: which one of a multi-platform image is meant.

    Raises:
        ImageFormatError: When the layout is malformed, a digest is wrong, or it is not clear which image is meant.
    """
    manifest = _tagged(_json(layout / "index.json"), tag)
    for _ in range(MAX_INDEXES):
        if "manifests" not in manifest:
            return _image(layout, manifest)
        manifest = _blob_json(layout, _chosen(_descriptors(manifest), architecture))
    raise ImageFormatError(f"more than {MAX_INDEXES} indexes within each other", field="index")


def _image(layout: Path, manifest: _Json) -> OciImage:
    descriptor = _object(manifest.get("config"), "manifest config")
    config = _blob_json(layout, descriptor)
    layers = manifest.get("layers")
    diff_ids = _object(config.get("rootfs"), "config rootfs").get("diff_ids")
    if not isinstance(layers, list) or not isinstance(diff_ids, list) or len(layers) != len(diff_ids):
        raise ImageFormatError("the manifest's layers and the configuration's diff_ids do not match", field="layers")
    if len(layers) > MAX_LAYERS:
        raise ImageFormatError(f"{len(layers)} layers are more than {MAX_LAYERS}", field="layers")
    digests = [str(_object(layer, "layer").get("digest")) for layer in layers]
    return OciImage(
        digest=str(descriptor["digest"]),
        config=config,
        layers=tuple(
            Layer(digest, _blob_path(layout, digest), str(diff_id))
            for digest, diff_id in zip(digests, diff_ids, strict=True)
        ),
    )


def _tagged(index: _Json, tag: str | None) -> _Json:
    """The index without the images that are not meant."""
    descriptors = _descriptors(index)
    if tag is None:
        return index
    found = [descriptor for descriptor in descriptors if tag in _names(descriptor)]
    if not found:
        known = ", ".join(sorted({name for descriptor in descriptors for name in _names(descriptor)}))
        hint = f"it has: {known}" if known else "its images have no tags; leave the tag out"
        raise ImageFormatError(f"the layout holds no image with the tag {tag!r}", field="index.json", hint=hint)
    return {"manifests": found}


def _names(descriptor: _Json) -> Iterator[str]:
    annotations = descriptor.get("annotations")
    if isinstance(annotations, dict):
        yield from (str(annotations[key]) for key in _NAMES if key in annotations)


def _chosen(descriptors: list[_Json], architecture: str | None) -> _Json:
    """The one that is meant. One image that has several tags is one."""
    different = list({str(descriptor.get("digest")): descriptor for descriptor in descriptors}.values())
    if len(different) == 1:
        return different[0]
    wanted = PLATFORMS.get(architecture or "")
    fitting = [descriptor for descriptor in different if _platform(descriptor)[:2] == ("linux", wanted)]
    baseline = [descriptor for descriptor in fitting if _platform(descriptor)[2] in ("", "v8", "v1")]
    if fitting and (baseline or len(fitting) == 1):
        return (baseline or fitting)[0]
    there = sorted({"/".join(_platform(descriptor)[:2]) for descriptor in different} - {"unknown/unknown", "/"})
    if wanted and there:
        message = f"the image is not for linux/{wanted}"
        raise ImageFormatError(message, field="index", hint=f"it is for {', '.join(there)}; see --arch")
    tags = ", ".join(sorted({name for descriptor in different for name in _names(descriptor)}))
    hint = f"give one by its tag, oci:DIRECTORY:TAG; there are: {tags}" if tags else "keep one, with a tag, in a layout"
    raise ImageFormatError(f"the layout holds {len(different)} images", field="index", hint=hint)


def _platform(descriptor: _Json) -> tuple[str, str, str]:
    """Operating system, architecture and variant; empty where the index does not say."""
    platform = descriptor.get("platform")
    if not isinstance(platform, dict):
        return "", "", ""
    return str(platform.get("os", "")), str(platform.get("architecture", "")), str(platform.get("variant") or "")


def flatten(image: OciImage, directory: Path, limits: Limits | None = None, on_bytes: OnBytes = silent) -> Flattened:
    """The image's layers as one tree (steps 3 to 5).

    Args:
        image: The image.
        directory: Where layers that are compressed are unpacked to.
        limits: What is taken.
        on_bytes: Progress.

    Raises:
        ImageFormatError: When a layer is malformed, a digest is wrong, or a limit is reached.
        MachineError: When a layer is compressed with zstd and there is no such program, or the disk is full.
    """
    stack = _Stack(len(image.layers), limits or Limits())
    use_layers(image.layers, directory, stack.limits, on_bytes, stack.add)
    return Flattened(stack.root, stack.spools)


class _NeedsBelowError(Exception):
    """A layer has a hard link into a lower one, so that its tree cannot be made by itself."""


class _Stack:
    """The layers as they get ready, in any order; `root` is the tree of those that lie on each other already."""

    def __init__(self, count: int, limits: Limits) -> None:
        self.limits = limits
        self.root = new_directory()
        self.spools = [Path()] * count
        self._budget = Budget(limits)
        self._trees: dict[int, Node | None] = {}  # those that wait for a lower one; None has still to be made
        self._next = 0

    def add(self, index: int, spool: Path, check: Callable[[], None]) -> None:
        """Take a layer that is ready, and lay what can be laid; `check` is called now and then."""
        self.spools[index] = spool
        self._trees[index] = self._tree_by_itself(index, check) if index != self._next else None
        while self._next in self._trees:
            tree = self._trees.pop(self._next) or self._tree(self._next, self.root, check)
            overlay(self.root, tree)
            self._next += 1

    def _tree_by_itself(self, index: int, check: Callable[[], None]) -> Node | None:
        left = self._budget.left
        try:
            return self._tree(index, None, check)
        except _NeedsBelowError:
            self._budget.left = left
            return None

    def _tree(self, index: int, below: Node | None, check: Callable[[], None]) -> Node:
        layer = _LayerTree(index, below, self._budget)
        with self.spools[index].open("rb", _HEADERS) as file:
            size = unpacked = os.fstat(file.fileno()).st_size
            for member in members(file, size):
                check()
                unpacked += member.size - member.stored
                if unpacked > self.limits.layer:
                    raise self.limits.too_large()
                self._budget.spend(len(member.name) + len(member.target), len(member.pieces or ()))
                layer.place(member)
        return layer.root


class _LayerTree:
    """The tree of one layer.

    Args:
        spool: The layer's number.
        below: What the lower layers made; None when that is not known yet.
        budget: Memory.
    """

    def __init__(self, spool: int, below: Node | None, budget: Budget) -> None:
        self.root = new_directory(implied=True)
        self._spool, self._below, self._budget = spool, below, budget
        # Members of one directory mostly follow each other, so the last one is remembered, as members name it.
        self._head: bytes | None = None
        self._directory = self.root

    def place(self, member: Member) -> None:
        """Put a member into the tree.

        Raises:
            ImageFormatError: When its path, or that of its link, leads nowhere.
            _NeedsBelowError: When it depends on the lower layers, which are not known yet.
        """
        head, _, name = member.name.rpartition(b"/")
        if head != self._head or not _is_plain(name):
            parts = split(member.name)
            if not parts or (_META in member.name and any(p.startswith(_META) and p != _OPAQUE for p in parts)):
                return  # the root itself, or AUFS's own book-keeping (layer.md "Whiteouts")
            name, self._directory = parts[-1], parent(self.root, parts, self._budget.spend)
            self._head = head if member.name.endswith(b"/" + name) else None
        self._place(member, self._directory, name)

    def _place(self, member: Member, directory: Node, name: bytes) -> None:
        if member.kind is Kind.FILE and not name.startswith(_WHITEOUT):
            self._put(directory, name, _file(member, self._spool))
        elif name == _OPAQUE:
            directory.opaque = True
        elif name.startswith(_WHITEOUT):
            directory.whiteouts = directory.whiteouts or set()
            directory.whiteouts.add(name[len(_WHITEOUT) :])
        elif member.kind is Kind.LINK:
            self._put(directory, name, _linked(member, self._link_target(member)))
        elif member.kind is Kind.DIRECTORY:
            node = directory.children.get(name)
            if node is None or not node.is_dir:
                node = self._put(directory, name, new_directory())
            node.mode, node.uid, node.gid = stat.S_IFDIR | member.mode, member.uid, member.gid
            node.mtime, node.implied = member.mtime, False
        else:
            self._put(directory, name, _file(member, self._spool))

    def _put(self, directory: Node, name: bytes, node: Node) -> Node:
        """Give a name to a node, instead of the one that had it."""
        old = directory.children.get(name)
        if old is not None and not stat.S_ISREG(old.mode):
            self._head = None  # the path may have led through it
        directory.children[name] = node
        return node

    def _link_target(self, member: Member) -> Node:
        target = split(member.target)
        node = find(None, self.root, target)
        if node is None:
            if self._below is None:
                raise _NeedsBelowError
            node = find(self._below, self.root, target)
        if node is None or node.is_dir:
            name, linked = (path.decode("utf-8", "backslashreplace") for path in (member.name, member.target))
            at = member.offset - 512
            raise ImageFormatError(
                f"{name} is a hard link to {linked}, which is not a file", field="tar linkname", offset=at
            )
        return node


def _is_plain(name: bytes) -> bool:
    """Whether the last part of a member's name is the name of a file, and nothing that `split` or a layer changes."""
    return name not in (b"", b".", b"..") and len(name) <= MAX_NAME and b"\0" not in name and name[:4] != _WHITEOUT


def _file(member: Member, spool: int) -> Node:
    is_link = member.kind is Kind.SYMLINK
    return Node(
        _TYPES[member.kind] | (0o777 if is_link else member.mode),
        member.uid,
        member.gid,
        member.mtime,
        member.rdev,
        member.target if is_link else b"",
        Data(spool, member.offset, member.size, member.pieces) if member.size else None,
        CHILDLESS,
    )


def _linked(member: Member, node: Node) -> Node:
    """The file with the attributes of its new name, as Docker's untar leaves it (MOBY pkg/archive, createTarFile)."""
    node.uid, node.gid = member.uid, member.gid
    if not stat.S_ISLNK(node.mode):
        node.mode, node.mtime = stat.S_IFMT(node.mode) | member.mode, member.mtime
    return node


def _blob_path(layout: Path, digest: str) -> Path:
    return layout.joinpath("blobs", *split_digest(digest))


def _blob_json(layout: Path, descriptor: _Json) -> _Json:
    digest = str(descriptor.get("digest"))
    return _json(_blob_path(layout, digest), digest)


def _json(path: Path, digest: str | None = None) -> _Json:
    """The object in a bounded JSON file, whose digest is checked first when there is one."""
    try:
        if not path.is_file():  # or a pipe, which nobody would ever write to
            raise FileNotFoundError(2, os.strerror(2))
        with path.open("rb") as file:
            data = file.read(MAX_JSON + 1)
        if len(data) > MAX_JSON:
            raise ImageFormatError(f"larger than {MAX_JSON} bytes", field=path.name)
        if digest is not None:
            checksum = Checksum(digest)
            checksum.update(data)
            checksum.check()
        return parse_json(data, path.name)
    except OSError as error:
        raise ImageFormatError(f"not an OCI image layout: {error.strerror}", field=path.name) from None


def parse_json(data: bytes, what: str) -> _Json:
    """A JSON object that can be written again as it is.

    Raises:
        ImageFormatError: When it is none; `what` is the field.
    """
    try:
        item = json.loads(data, parse_constant=_refuse)
        json.dumps(item, ensure_ascii=False).encode()  # halves of characters could not be written again
    except (ValueError, RecursionError):
        raise ImageFormatError("not JSON", field=what) from None
    return _object(item, what)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _object(item: object, what: str) -> _Json:
    if not isinstance(item, dict):
        raise ImageFormatError("not a JSON object", field=what)
    return item


def _descriptors(index: _Json) -> list[_Json]:
    manifests = index.get("manifests")
    if not isinstance(manifests, list) or not manifests:
        raise ImageFormatError("it names no image", field="index")
    return [_object(item, "index") for item in manifests]
