"""The ramdisks, against the golden archive of eif.md §7.4."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable

import pytest

from alcove.codec import cpio
from alcove.image import ramdisk
from alcove.image.measure import pcr
from alcove.image.process import Process
from alcove.image.ramdisk import add_init_layer, application_entries, boot_entries
from alcove.image.sources.tree import Data, Node, new_directory

TIME = 1700000000


def no_data(_: Data) -> Iterable[bytes]:
    return (b"sh\n",)


def tree() -> Node:
    """The image of eif.md §7.4: bin/ls with the further name bin/sh, and tmp."""
    program = Node(stat.S_IFREG | 0o755, mtime=TIME, data=Data(0, 0, 3))
    binaries = Node(stat.S_IFDIR | 0o755, mtime=TIME, children={b"sh": program, b"ls": program})
    return Node(stat.S_IFDIR, children={b"tmp": Node(stat.S_IFDIR | 0o1777, mtime=TIME), b"bin": binaries})


def entries(root: Node) -> dict[bytes, cpio.Entry]:
    """The exported entries by name; of duplicates the first."""
    found: dict[bytes, cpio.Entry] = {}
    for entry in application_entries(root, {}, no_data):
        found.setdefault(entry.name, entry)
    return found


def content(entry: cpio.Entry) -> bytes:
    return b"".join(entry.data())


def test_the_golden_archive_is_reproduced() -> None:
    """Init layer, order, hard links, replaced files, duplicates, cmd and env: one hash holds them all."""
    root = tree()
    add_init_layer(root)
    files = Process(["/bin/sh", "-c", "id"], ["A=b"]).files()
    data = b"".join(cpio.archive(application_entries(root, files, no_data)))
    assert len(data) == 3584
    assert hashlib.sha256(data).hexdigest() == "abba0148860efd6099bd69fcebe1fa12668c632204f70f85d1214802311c8e51"
    assert pcr(data).hex() == (
        "a101d7a6ad1a447af1634aa7d859ef275db9c85e0d99b1c2418c0d5db63d41c3f63b3196f7dc355c88169c4db1c3e4cb"
    )


def test_etc_hosts_is_the_specifications() -> None:
    """Six lines, 160 bytes (eif.md §7.3)."""
    assert len(ramdisk.HOSTS) == 160
    assert hashlib.sha256(ramdisk.HOSTS).hexdigest() == (
        "43037ff87af87fda11c4377e963593a0f55e513702779db721c6ce574c06e88e"
    )


def test_the_init_layer_keeps_directories_and_replaces_all_else() -> None:
    """A directory stays with its mode and owner; a symlink or file of that name disappears (eif.md §7.4)."""
    root = new_directory()
    root.children[b"etc"] = Node(stat.S_IFDIR | 0o700, uid=5)
    root.children[b"etc"].children[b"hosts"] = Node(stat.S_IFREG | 0o600, uid=5)
    root.children[b"proc"] = Node(stat.S_IFLNK | 0o777, target=b"/elsewhere")
    root.children[b"dev"] = Node(stat.S_IFREG | 0o644)
    add_init_layer(root)
    assert (root.children[b"etc"].mode, root.children[b"etc"].uid) == (stat.S_IFDIR | 0o700, 5)
    assert (root.children[b"etc"].children[b"hosts"].mode, root.children[b"etc"].children[b"hosts"].uid) == (
        0o100755,
        0,
    )
    assert root.children[b"proc"].is_dir
    assert sorted(root.children[b"dev"].children) == [b"console", b"pts", b"shm"]


def test_linuxkits_names_are_dropped_and_changed() -> None:
    """Some names go, their directories stay, hosts and resolv.conf are replaced."""
    root = tree()
    root.children[b"Dockerfile"] = Node(stat.S_IFREG | 0o644)
    add_init_layer(root)
    found = entries(root)
    for name in (b".dockerenv", b"Dockerfile", b"dev/console", b"etc/hostname"):
        assert b"rootfs/" + name not in found
    assert found[b"rootfs/dev/pts/"].mode == 0o40755
    assert content(found[b"rootfs/etc/hosts"]) == ramdisk.HOSTS
    assert content(found[b"rootfs/etc/resolv.conf"]) == b"/run/resolvconf/resolv.conf"


def test_what_the_container_lacks_is_added_without_slashes() -> None:
    """Step 3 of eif.md §7.3, for a tree without an init layer."""
    found = entries(new_directory())
    assert found[b"rootfs/dev/pts"].mode == 0o40755
    assert found[b"rootfs/etc/hosts"].mode == 0o100644
    assert found[b"rootfs/etc/mtab"].mode == 0o120755
    assert found[b"rootfs/etc/resolv.conf"].mode == 0o120644


def test_hard_links_point_to_the_first_name_with_a_relative_path() -> None:
    """Across directories, up and down."""
    root = new_directory()
    shared = Node(stat.S_IFREG | 0o640, uid=7)
    root.children[b"a"] = Node(stat.S_IFDIR | 0o755, children={b"b": new_directory()})
    root.children[b"a"].children[b"b"].children[b"first"] = shared
    root.children[b"a"].children[b"c"] = Node(stat.S_IFDIR | 0o755, children={b"second": shared})
    root.children[b"z"] = shared
    found = entries(root)
    assert content(found[b"rootfs/a/c/second"]) == b"../b/first"
    assert content(found[b"rootfs/z"]) == b"a/b/first"
    assert (found[b"rootfs/z"].mode, found[b"rootfs/z"].uid) == (0o120640, 7)


def test_directories_come_before_longer_names_that_sort_before_the_slash() -> None:
    """`a/` and `a/x` come before `a.txt` although the dot sorts before the slash: names are sorted, not paths."""
    root = new_directory()
    root.children[b"a.txt"] = Node(stat.S_IFREG | 0o644)
    root.children[b"a"] = Node(stat.S_IFDIR | 0o755, children={b"x": Node(stat.S_IFREG)})
    names = [name for name in entries(root) if name.startswith(b"rootfs/a")]
    assert names == [b"rootfs/a/", b"rootfs/a/x", b"rootfs/a.txt"]


def test_device_nodes_keep_their_numbers() -> None:
    """Devices in layers are written with their numbers."""
    root = new_directory()
    root.children[b"null"] = Node(stat.S_IFCHR | 0o666, rdev=(1, 3))
    assert entries(root)[b"rootfs/null"].rdev == (1, 3)


def test_the_boot_ramdisk_holds_modules_in_load_order() -> None:
    """Our own kernel brings its drivers in a directory; AWS's has one module in the root."""
    ours = boot_entries(b"init", [(b"modules/00-b.ko", b"1"), (b"modules/01-a.ko", b"2")])
    assert [entry.name for entry in ours] == [b"dev", b"init", b"modules", b"modules/00-b.ko", b"modules/01-a.ko"]
    theirs = boot_entries(b"init", [(b"nsm.ko", b"1")])
    assert [(entry.name, entry.mode) for entry in theirs][1:] == [(b"init", 0o100755), (b"nsm.ko", 0o100755)]


@pytest.mark.parametrize(("init", "module", "size"), [(742968, 20504, 764416), (738616, 23208, 762368)])
def test_aws_boot_files_make_ramdisks_of_known_size(init: int, module: int, size: int) -> None:
    """Those of nitro-cli 1.3.1 to 1.5.0, for x86_64 and aarch64 (eif.md §7.2 and §9)."""
    entries = boot_entries(bytes(init), [(b"nsm.ko", bytes(module))])
    assert cpio.archive_size(entries) == sum(len(chunk) for chunk in cpio.archive(entries)) == size
