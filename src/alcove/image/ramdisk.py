"""The two ramdisks of an image, entry by entry as nitro-cli's linuxkit writes them (eif.md §7).

Core: trees and bytes in, cpio entries out.

    boot          dev, init, nsm.ko                       (AWS's blobs)
                  dev, init, modules, modules/NN-name.ko  (ours: Debian's kernel has its drivers as modules)
    application   rootfs, the exported container below it, rootfs again with its mount points, cmd, env
                  (and oci and log, where --oci-entrypoint and --show-log or a label ask for them)
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from alcove.codec import cpio
from alcove.codec.cpio import DEFAULT_TIME, Entry
from alcove.image.sources.tree import Data, Node, new_directory, walk

PREFIX: Final = b"rootfs/"
HOSTS: Final = b"""127.0.0.1       localhost
::1     localhost ip6-localhost ip6-loopback
fe00::0 ip6-localnet
ff00::0 ip6-mcastprefix
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
"""  # eif.md §7.3: 160 bytes
RESOLV_CONF: Final = b"/run/resolvconf/resolv.conf"
MTAB: Final = b"/proc/mounts"

_DROPPED: Final = {b".dockerenv", b"Dockerfile", b"dev/console", b"dev/pts", b"dev/shm", b"etc/hostname"}  # §7.3 step 2
_REQUIRED: Final = (  # §7.3 step 3, sorted; those of step 2's table that get the default time
    b"dev/", b"dev/pts/", b"dev/shm/", b"etc/", b"etc/hosts", b"etc/mtab", b"etc/resolv.conf", b"proc/", b"sys/",
)  # fmt: skip
_MOUNT_POINTS: Final = (b"dev", b"run", b"sys", b"var", b"proc", b"tmp")  # §7.3 step 4
_INIT_DIRECTORIES: Final = (b"dev/pts", b"dev/shm", b"proc", b"sys")  # §7.4
_INIT_FILES: Final = (b".dockerenv", b"etc/resolv.conf", b"etc/hosts", b"etc/hostname", b"dev/console")


def boot_entries(init: bytes, modules: Sequence[tuple[bytes, bytes]]) -> list[Entry]:
    """The boot ramdisk (eif.md §7.2).

    Args:
        init: The program that the kernel starts.
        modules: Name in the ramdisk and content of each kernel module, in load order.
    """
    entries = [cpio.directory(b"dev"), cpio.file(b"init", init, 0o755)]
    if any(name.startswith(b"modules/") for name, _ in modules):
        entries.append(cpio.directory(b"modules"))
    return entries + [cpio.file(name, content, 0o755) for name, content in modules]


def add_init_layer(root: Node) -> None:
    """Change a tree as `docker create` does before the container is ever started (eif.md §7.4)."""
    leaves = {path: new_directory() for path in _INIT_DIRECTORIES}
    leaves |= {path: Node(stat.S_IFREG | 0o755) for path in _INIT_FILES}
    leaves[b"etc/mtab"] = Node(stat.S_IFLNK | 0o777, target=MTAB)
    for path, leaf in leaves.items():
        node = root
        *parents, name = path.split(b"/")
        for part in parents:
            child = node.children.get(part)
            if child is None or not child.is_dir:
                child = node.children[part] = new_directory()
            node = child
        old = node.children.get(name)
        if old is None or not old.is_dir:
            node.children[name] = leaf


def application_entries(
    root: Node, files: Mapping[bytes, bytes], read: Callable[[Data], Iterable[cpio.Chunk]]
) -> Iterator[Entry]:
    """The application ramdisk (eif.md §7.3) of a container's tree, init layer included.

    Args:
        root: The tree.
        files: What init reads: `cmd`, `env` and maybe `oci` and `log`, by name (`process.Process.files`).
        read: Gives the content of a file in chunks.

    Raises:
        ImageFormatError: E35 when the tree does not fit a cpio archive.
    """
    yield cpio.directory(b"rootfs")
    missing = set(_REQUIRED)
    first_names: dict[int, bytes] = {}
    for name, node in walk(root):
        missing.discard(name)
        first = name if node.is_dir else first_names.setdefault(id(node), name)
        if name not in _DROPPED:
            yield _hard_link(name, first, node) if first != name else _exported(name, node, read)
    yield from (_made_up(name) for name in _REQUIRED if name in missing)
    yield cpio.directory(b"rootfs")
    yield from (cpio.directory(PREFIX + name) for name in _MOUNT_POINTS)
    yield from (cpio.file(name, content) for name, content in files.items())


def _exported(name: bytes, node: Node, read: Callable[[Data], Iterable[cpio.Chunk]]) -> Entry:
    """An entry of the exported container, with linuxkit's changes to some names."""
    path = PREFIX + name
    mtime = DEFAULT_TIME if name in _REQUIRED else node.mtime
    if name == b"etc/resolv.conf":
        return cpio.symlink(path, RESOLV_CONF, stat.S_IMODE(node.mode), uid=node.uid, gid=node.gid, mtime=mtime)
    if stat.S_ISLNK(node.mode):
        return cpio.symlink(path, node.target, stat.S_IMODE(node.mode), uid=node.uid, gid=node.gid, mtime=mtime)
    if name == b"etc/hosts":
        return Entry(path, node.mode, node.uid, node.gid, mtime, len(HOSTS), data=lambda: (HOSTS,))
    data = node.data
    if data is None or not stat.S_ISREG(node.mode):
        return Entry(path, node.mode, node.uid, node.gid, mtime, rdev=node.rdev)
    return Entry(path, node.mode, node.uid, node.gid, mtime, data.size, data=lambda: read(data))


def _hard_link(name: bytes, first: bytes, node: Node) -> Entry:
    """A further name of a file: a relative symlink to the first, with the file's own mode bits (eif.md §7.1)."""
    here, there = name.split(b"/")[:-1], first.split(b"/")
    common = 0
    while common < min(len(here), len(there) - 1) and here[common] == there[common]:
        common += 1
    target = b"/".join([b".."] * (len(here) - common) + there[common:])
    return cpio.symlink(PREFIX + name, target, stat.S_IMODE(node.mode), uid=node.uid, gid=node.gid, mtime=node.mtime)


def _made_up(name: bytes) -> Entry:
    """What step 3 adds when the container does not have it: names without the trailing slash."""
    path = PREFIX + name.rstrip(b"/")
    if name.endswith(b"/"):
        return cpio.directory(path)
    if name == b"etc/hosts":
        return cpio.file(path, HOSTS)
    return cpio.symlink(path, MTAB, 0o755) if name == b"etc/mtab" else cpio.symlink(path, RESOLV_CONF, 0o644)
