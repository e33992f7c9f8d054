"""A file tree without its data: what the layers of a container image leave when they lie on each other.

Core: nodes in, nodes out. The data of a file stays where it is (`Data`); a node costs some hundred bytes of memory.

A layer is a tree of its own, in which a name may be a *whiteout*. Laying a layer on a tree (`overlay`) follows the OCI
image specification, "layer.md":

- a whiteout `.wh.NAME` removes NAME from below; `.wh..wh..opq` in a directory hides all that it holds below
- a directory on a directory takes the new attributes and keeps the children
- anything else replaces what is there, whole trees included

Hard links are one node under several names.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple, cast

from alcove.codec.cpio import DEFAULT_TIME
from alcove.errors import ImageFormatError

MAX_DEPTH: Final = 256  # ours; PATH_MAX allows some 2000, no image comes near
MAX_NAME: Final = 255  # Linux NAME_MAX (include/uapi/linux/limits.h)
MAX_LINKS: Final = 40  # Linux MAXSYMLINKS (include/linux/namei.h)

OnNew = Callable[[], None]


class Data(NamedTuple):  # quicker to make than a frozen dataclass: there is one for each file
    """Where the content of a file is: in file number `spool`, from `offset` on.

    Attributes:
        size: Bytes of the content.
        pieces: Of a sparse file: where its stored bytes, which follow each other in the spool, belong; (offset, length)
            each. What is between is zero. None when all bytes are stored.
    """

    spool: int
    offset: int
    size: int
    pieces: tuple[tuple[int, int], ...] | None = None


@dataclass(slots=True, eq=False)
class Node:
    """A file, directory, link or device; equal only to itself, for two names may share one node.

    Attributes:
        mode: Type and permission bits as in st_mode.
        target: Of a symbolic link.
        data: Of a regular file; None when it is empty.
        children: Of a directory, by name; `CHILDLESS` saves all else the memory of a dictionary.
        implied: A directory that a layer does not list but has entries in: its attributes are made up.
        opaque: A directory that hides what lower layers have in it.
        whiteouts: Names that lower layers lose in this directory; None when there are none.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = DEFAULT_TIME
    rdev: tuple[int, int] = (0, 0)
    target: bytes = b""
    data: Data | None = None
    children: dict[bytes, Node] = field(default_factory=dict)
    implied: bool = False
    opaque: bool = False
    whiteouts: set[bytes] | None = None

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


CHILDLESS: Final = cast("dict[bytes, Node]", MappingProxyType({}))  # cannot be written to


def new_directory(mode: int = 0o755, *, implied: bool = False) -> Node:
    """An empty directory of root's, with the default time."""
    return Node(stat.S_IFDIR | mode, implied=implied)


def split(path: bytes) -> tuple[bytes, ...]:
    """The components of a path as a layer names it: relative, `.` and `..` resolved.

    Raises:
        ImageFormatError: When the path leaves the root, holds NUL, or is too deep.
    """
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                raise ImageFormatError(f"{_text(path)} leaves the image's root", field="layer entry")
            parts.pop()
        elif part not in (b"", b"."):
            if len(part) > MAX_NAME:
                raise ImageFormatError(f"{_text(part)[:80]} is longer than {MAX_NAME} bytes", field="layer entry")
            parts.append(part)
    if len(parts) > MAX_DEPTH or b"\0" in path:
        raise ImageFormatError(f"{_text(path)[:80]} is not a path an image can hold", field="layer entry")
    return tuple(parts)


def find(lower: Node | None, upper: Node, parts: tuple[bytes, ...]) -> Node | None:
    """The node at a path once the layer `upper` lies on `lower`.

    Symbolic links on the way are followed within the root, as `linkat` in a chroot does; one at the end is not.
    A node that is found with `lower` None, in `upper` alone, is found on whatever that layer is laid.
    """
    stack: list[tuple[Node | None, Node | None]] = [(lower, upper)]
    todo = list(reversed(parts))
    links = 0
    while todo:
        part = todo.pop()
        if part == b"..":
            del stack[max(1, len(stack) - 1) :]
            continue
        child = _child(*stack[-1], part)
        node = child[1] or child[0]
        if node is None or (todo and not node.is_dir and not stat.S_ISLNK(node.mode)):
            return None
        if not todo or node.is_dir:
            stack.append(child)
            continue
        links += 1
        if links > MAX_LINKS:
            return None
        del stack[1 if node.target.startswith(b"/") else len(stack) :]
        todo += [p for p in reversed(node.target.split(b"/")) if p not in (b"", b".")]
    below, above = stack[-1]
    return above or below


def _child(lower: Node | None, upper: Node | None, name: bytes) -> tuple[Node | None, Node | None]:
    """The nodes of that name in a directory of two layers; only directories lie on each other."""
    above = upper.children.get(name) if upper else None
    hidden = upper is not None and (upper.opaque or name in (upper.whiteouts or ()))
    below = None if lower is None or hidden else lower.children.get(name)
    if above is not None and not (above.is_dir and below is not None and below.is_dir):
        below = None
    return below, above


def parent(root: Node, parts: tuple[bytes, ...], on_new: OnNew = lambda: None) -> Node:
    """The directory that a path's last component belongs in; missing ones are made, and `on_new` called for each.

    Symbolic links on the way are followed as if the root were the machine's own, so none leads outside; a file on the
    way gives place to a directory.

    Raises:
        ImageFormatError: When links lead in a circle, or too deep.
    """
    stack = [root]
    todo = list(reversed(parts[:-1]))
    links = 0
    while todo:
        part = todo.pop()
        if part == b"..":
            del stack[max(1, len(stack) - 1) :]
            continue
        child = stack[-1].children.get(part)
        if child is not None and stat.S_ISLNK(child.mode):
            links += 1
            if links > MAX_LINKS:
                raise ImageFormatError(f"{_text(b'/'.join(parts))} goes through too many links", field="layer entry")
            del stack[1 if child.target.startswith(b"/") else len(stack) :]
            todo += [p for p in reversed(child.target.split(b"/")) if p not in (b"", b".")]
            continue
        if child is None or not child.is_dir:
            on_new()
            child = stack[-1].children[part] = new_directory(implied=True)
        stack.append(child)
        if len(stack) > MAX_DEPTH:
            raise ImageFormatError(f"{_text(b'/'.join(parts))[:80]} is too deep", field="layer entry")
    return stack[-1]


def overlay(lower: Node, upper: Node) -> None:
    """Lay the tree `upper`, a layer, on `lower`, which is changed in place; `upper` is used up."""
    todo = [(lower, upper)]
    while todo:
        below, above = todo.pop()
        if above.opaque:
            below.children.clear()
        for name in above.whiteouts or ():
            below.children.pop(name, None)
        for name, node in above.children.items():
            old = below.children.get(name)
            if not node.is_dir:
                below.children[name] = node
                continue
            if old is None or not old.is_dir:
                old = below.children[name] = new_directory()
                _copy_attributes(node, old)
            elif not node.implied:
                _copy_attributes(node, old)
            todo.append((old, node))


def _copy_attributes(source: Node, target: Node) -> None:
    target.mode, target.uid, target.gid, target.mtime = source.mode, source.uid, source.gid, source.mtime


def walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Every name below the root and its node, in the order of `docker export` (eif.md §7.4).

    Depth first; within a directory by the bytes of the name; a directory's children follow it at once. Names of
    directories end in a slash.
    """
    todo = [(b"", root.children, iter(sorted(root.children)))]
    while todo:
        prefix, children, names = todo[-1]
        for name in names:
            node = children[name]
            if not node.is_dir:
                yield prefix + name, node
                continue
            path = prefix + name + b"/"
            yield path, node
            todo.append((path, node.children, iter(sorted(node.children))))
            break
        else:
            todo.pop()


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
