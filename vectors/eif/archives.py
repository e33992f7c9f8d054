"""Vectors of the cpio archives that ramdisks are (eif.md §7.1, §7.2, §7.4)."""

from __future__ import annotations

from vectors.collection import Collection, Fields

vector = Collection("cpio")
Made = tuple[bytes, Fields]

TIME = 1492533000  # eif.md §7.1
DIRECTORY, FILE, LINK = 0o040000, 0o100000, 0o120000
NAMES = (
    "inode", "mode", "uid", "gid", "nlink", "mtime", "file size", "devmajor", "devminor", "rdevmajor", "rdevminor",
    "namesize", "check",
)  # fmt: skip
HOSTS = b"""127.0.0.1       localhost
::1     localhost ip6-localhost ip6-loopback
fe00::0 ip6-localnet
ff00::0 ip6-mcastprefix
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
"""
Item = tuple[str, int, int, bytes]  # name, mode, time, data
BOOT: tuple[Item, ...] = (
    ("dev", DIRECTORY | 0o755, TIME, b""),
    ("init", FILE | 0o755, TIME, b"init\n"),
    ("nsm.ko", FILE | 0o755, TIME, b"nsm\n"),
)


def member(inode: int, item: Item, magic: bytes = b"070701", check: int = 0) -> bytes:
    """One member, padded to a multiple of four."""
    name, mode, time, data = item
    links = 2 if mode & 0o170000 == DIRECTORY else 1
    numbers = (inode, mode, 0, 0, links, time, len(data), 3, 1, 0, 0, len(name) + 1, check)
    head = magic + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def archive(*items: Item) -> bytes:
    """An archive as linuxkit writes it."""
    return closed(b"".join(member(721 + index, item) for index, item in enumerate(items)), 721 + len(items))


def closed(members: bytes, inode: int, magic: bytes = b"070701") -> bytes:
    """Members with a trailer after them, padded to a multiple of 512."""
    whole = members + member(inode, ("TRAILER!!!", 0, 0, b""), magic)
    return whole + bytes(-len(whole) % 512)


def summed(item: Item, check: int) -> bytes:
    """An archive of one file with the second magic, and this sum of its data."""
    return closed(member(721, item, b"070702", check), 722, b"070702")


def read(*items: Item, data: bytes = b"", **other: object) -> Made:
    """An archive, and a line for each of its members: mode, uid, gid, time, size, name, target of a link."""
    lines = []
    for name, mode, time, content in items:
        target = f" -> {content.decode()}" if mode & 0o170000 == LINK else ""
        lines.append(f"{mode:06o} 0 0 {time} {len(content)} {name}{target}")
    return data or archive(*items), {"expect": "read", "entry": lines, **other}


def refused(data: bytes, field: str, offset: int) -> Made:
    """An archive that no reader takes, and where its fault is."""
    return data, {"expect": "refused", "field": field, "offset": offset}


def at(field: str, base: int = 0) -> int:
    """Where a field of the member at `base` is."""
    return base + 6 + 8 * NAMES.index(field)


def changed(field: str, value: bytes, *items: Item) -> bytes:
    """An archive whose first member has other digits in a field."""
    whole, place = archive(*(items or BOOT)), at(field)
    return whole[:place] + value + whole[place + len(value) :]


@vector
def boot_ramdisk() -> Made:
    """The boot ramdisk of eif.md §7.2."""
    return read(*BOOT, source="eif.md §7.2")


@vector
def application_ramdisk() -> Made:
    """The application ramdisk of eif.md §7.4: the container's tree between two rootfs entries, then cmd and env."""
    stamp = 1700000000
    kept: list[Item] = [
        ("rootfs/bin/", DIRECTORY | 0o755, stamp, b""),
        ("rootfs/bin/ls", FILE | 0o755, stamp, b"sh\n"),
        ("rootfs/bin/sh", LINK | 0o755, stamp, b"ls"),
        *((f"rootfs/{name}/", DIRECTORY | 0o755, TIME, b"") for name in ("dev", "dev/pts", "dev/shm", "etc")),
        ("rootfs/etc/hosts", FILE | 0o755, TIME, HOSTS),
        ("rootfs/etc/mtab", LINK | 0o777, TIME, b"/proc/mounts"),
        ("rootfs/etc/resolv.conf", LINK | 0o755, TIME, b"/run/resolvconf/resolv.conf"),
        *((f"rootfs/{name}/", DIRECTORY | 0o755, TIME, b"") for name in ("proc", "sys")),
        ("rootfs/tmp/", DIRECTORY | 0o1777, stamp, b""),
    ]
    root = ("rootfs", DIRECTORY | 0o755, TIME, b"")
    points = [(f"rootfs/{name}", *root[1:]) for name in ("dev", "run", "sys", "var", "proc", "tmp")]
    texts = [("cmd", FILE | 0o644, TIME, b"/bin/sh\n-c\nid\n"), ("env", FILE | 0o644, TIME, b"A=b\n")]
    return read(root, *kept, root, *points, *texts, source="eif.md §7.4")


@vector
def empty() -> Made:
    """Nothing but a trailer."""
    return read()


@vector
def nothing() -> Made:
    """No byte at all, which the kernel takes."""
    return b"", {"expect": "read"}


@vector
def upper_case_digits() -> Made:
    """Hexadecimal digits in upper case: read, never written."""
    return read(*BOOT, data=changed("mode", b"000041ED"))


@vector
def with_sums() -> Made:
    """The second magic, 070702: a sum of the data's bytes is in the field that is otherwise zero."""
    item = BOOT[1]
    return read(item, data=summed(item, sum(item[3])))


@vector
def without_trailer() -> Made:
    """The archive just ends: the kernel does not mind."""
    return read(*BOOT, data=b"".join(member(1, item) for item in BOOT))


@vector
def two_archives() -> Made:
    """A second archive follows the first one's padding, as initramfs images have it."""
    return read(*BOOT, *BOOT, data=archive(*BOOT) * 2)


@vector
def long_file() -> Made:
    """A file longer than any buffer."""
    return read(("big", FILE | 0o644, TIME, b"\x42" * ((1 << 20) + 3)))


@vector
def magic() -> Made:
    """The magic of the old portable format, odc."""
    return refused(b"070707" + archive(*BOOT)[6:], "magic", 0)


@vector
def digit() -> Made:
    """A letter that is no hexadecimal digit."""
    return refused(changed("file size", b"0000000g"), "file size", at("file size"))


@vector
def sign() -> Made:
    """A sign, which some functions that read numbers take."""
    return refused(changed("uid", b"+0000000"), "uid", at("uid"))


@vector
def name_of_nothing() -> Made:
    """A name of zero bytes, without even its NUL."""
    return refused(changed("namesize", b"00000000"), "namesize", at("namesize"))


@vector
def name_empty() -> Made:
    """A name that is its NUL alone."""
    return refused(archive(("", *BOOT[0][1:])), "namesize", at("namesize"))


@vector
def name_without_end() -> Made:
    """No NUL where the name should end."""
    return refused(changed("namesize", b"00000003"), "name", 110)


@vector
def name_with_nul() -> Made:
    """A NUL within the name: two readers would see two names."""
    data = archive(*BOOT).replace(b"dev\0", b"d\0v\0", 1)
    return refused(data, "name", 110)


@vector
def name_of_four_gigabytes() -> Made:
    """A name that claims 2^32 - 1 bytes."""
    return refused(changed("namesize", b"ffffffff"), "namesize", at("namesize"))


@vector
def data_of_four_gigabytes() -> Made:
    """A file that claims 2^32 - 1 bytes."""
    data = changed("file size", b"ffffffff", BOOT[1])
    return refused(data, "file size", len(data))


@vector
def target_of_four_gigabytes() -> Made:
    """A symbolic link whose target claims 2^32 - 1 bytes, which a reader might take into memory."""
    item = ("link", LINK | 0o777, TIME, b"target")
    return refused(changed("file size", b"ffffffff", item), "file size", at("file size"))


@vector
def sum_wrong() -> Made:
    """The sum of the data is another."""
    return refused(summed(BOOT[1], 1), "check", at("check"))


@vector
def header_cut() -> Made:
    """The archive ends inside a header."""
    return refused(archive(*BOOT)[:100], "header", 100)


@vector
def data_cut() -> Made:
    """The archive ends inside a file."""
    data = member(1, BOOT[1])[:-4]
    return refused(data, "file size", len(data))


@vector
def trailing_bytes() -> Made:
    """Something that is neither zeros nor a header follows."""
    data = archive(*BOOT)
    return refused(data + b"more", "magic", len(data))


@vector
def header_out_of_step() -> Made:
    """A header that does not begin at a multiple of four."""
    first = archive(BOOT[0])
    return refused(first + b"\0\0" + archive(BOOT[1]), "magic", len(first) + 2)
