"""The layers of a container image, flattened to one tree (OCI image specification 1.1, "layer.md").

1. the layers are made ready (`layers`): plain tar files whose digests have been checked
2. the members of each become a tree that refers to the file by offset: file data is never in memory
3. the layers' trees are laid on each other, lowest first

A layer that leaves out a directory's entry keeps the attributes the directory has below. A layer that has a name below
what is a symbolic link in a lower layer puts a directory in the link's place, as overlayfs does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from alcove.errors import ImageFormatError
from alcove.image.sources.container import Flattened, OnBytes
from alcove.image.sources.layers import Layer, use_layers
from alcove.image.sources.limits import Budget, Limits
from alcove.image.sources.tar import Kind, Member, members
from alcove.image.sources.tree import CHILDLESS, MAX_NAME, Data, Node, find, new_directory, overlay, parent, split

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


def flatten_layers(layers: Sequence[Layer], directory: Path, limits: Limits, on_bytes: OnBytes) -> Flattened:
    """The layers as one tree.

    Args:
        layers: Lowest first.
        directory: Where layers that are compressed are unpacked to.
        limits: What is taken.
        on_bytes: Progress.

    Raises:
        ImageFormatError: When a layer is malformed, a digest is wrong, or a limit is reached.
        MachineError: When a layer is compressed with zstd and there is no such program, or the disk is full.
    """
    stack = _Stack(len(layers), limits)
    use_layers(layers, directory, limits, on_bytes, stack.add)
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
