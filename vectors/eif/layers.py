"""Vectors of container layers (OCI image specification, layer.md): tar archives, and the tree that they leave."""

from __future__ import annotations

import io
import stat
import tarfile
from dataclasses import dataclass

from vectors.collection import Collection, Fields

vector = Collection("layers")
Made = tuple[bytes, Fields]
TIME = 1700000000


@dataclass(frozen=True)
class Item:
    """A member of a layer; a name that ends in a slash is a directory."""

    name: str
    data: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    uid: int = 0
    gid: int = 0
    time: float = TIME
    device: tuple[int, int] = (0, 0)


def directory(name: str, mode: int = 0o755, **other: object) -> Item:
    """A directory."""
    return Item(name, mode=mode, kind=tarfile.DIRTYPE, **other)  # type: ignore[arg-type]


def symlink(name: str, target: str) -> Item:
    """A symbolic link."""
    return Item(name, kind=tarfile.SYMTYPE, target=target)


def hard_link(name: str, target: str) -> Item:
    """A hard link."""
    return Item(name, kind=tarfile.LNKTYPE, target=target)


def tar(*items: Item, form: int = tarfile.USTAR_FORMAT, pax: dict[str, str] | None = None) -> bytes:
    """A layer, as Python's tarfile writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers=pax) as archive:
        for item in items:
            info = tarfile.TarInfo(item.name)
            info.type, info.linkname, info.mtime, info.size = item.kind, item.target, item.time, len(item.data)
            info.mode, info.uid, info.gid, (info.devmajor, info.devminor) = item.mode, item.uid, item.gid, item.device
            archive.addfile(info, io.BytesIO(item.data))
    return out.getvalue()


_TYPES = {
    tarfile.REGTYPE: stat.S_IFREG, tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO,
}  # fmt: skip


def line(item: Item) -> str:
    """Mode, uid, gid, time, name, and what there is of: content, target of a link, number of a device."""
    mode = _TYPES[item.kind] | (0o777 if item.kind == tarfile.SYMTYPE else item.mode)
    text = f"{mode:06o} {item.uid} {item.gid} {int(item.time // 1)} {item.name}"
    text += f" = {item.data.hex()}" if item.data else ""
    text += f" -> {item.target}" if item.kind == tarfile.SYMTYPE else ""
    return text + (f" {item.device[0]}:{item.device[1]}" if item.kind in (tarfile.CHRTYPE, tarfile.BLKTYPE) else "")


def flat(layers: list[bytes], *tree: Item | str) -> Made:
    """Layers, lowest first, and the tree in the order of a walk; a text stands for itself."""
    lines = [item if isinstance(item, str) else line(item) for item in tree]
    return b"".join(layers), {"expect": "read", "layers": " ".join(str(len(layer)) for layer in layers), "entry": lines}


def refused(layer: bytes, field: str, offset: int | None = None) -> Made:
    """A layer that no reader takes, and where its fault is."""
    return layer, {"expect": "refused", "layers": str(len(layer)), "field": field, "offset": offset}


def summed(header: bytes) -> bytes:
    """A header's block with its checksum put right."""
    return header[:148] + b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512])) + header[156:]


def patched(layer: bytes, offset: int, value: bytes) -> bytes:
    """A layer with other bytes in its first header, whose checksum is put right."""
    return summed(layer[:offset] + value + layer[offset + len(value) :])


def extended(kind: bytes, content: bytes, *items: Item) -> bytes:
    """A layer that begins with a header of kind x, g, L or K."""
    head = bytearray(tar(Item("extended", content))[:512])
    head[156:157] = kind
    return summed(bytes(head)) + content + bytes(-len(content) % 512) + tar(*items)


def record(key: str, value: str) -> bytes:
    """One PAX record, with its own length in front."""
    rest = f" {key}={value}\n".encode()
    size = len(rest)
    while len(str(size)) + len(rest) != size:
        size = len(str(size)) + len(rest)
    return str(size).encode() + rest


OLD, NEW, DIR = Item("d/f", b"old"), Item("d/f", b"new", 0o600), directory("d/")


@vector
def one_layer() -> Made:
    """A directory, a file, links of both kinds."""
    tree = [DIR, OLD, symlink("d/s", "f")]
    return flat([tar(*tree, hard_link("d/z", "d/f"))], *tree, "100644 0 0 1700000000 d/z => d/f")


@vector
def later_layer_wins() -> Made:
    """A file of the same name takes the place of the one below, attributes included."""
    return flat([tar(DIR, OLD), tar(NEW)], DIR, NEW)


@vector
def same_name_twice() -> Made:
    """Within a layer too the later entry counts."""
    return flat([tar(DIR, OLD, NEW)], DIR, NEW)


@vector
def whiteout() -> Made:
    """`.wh.f` removes f from the layers below, and leaves no trace."""
    return flat([tar(DIR, OLD, Item("d/g", b"g")), tar(Item("d/.wh.f"))], DIR, Item("d/g", b"g"))


@vector
def whiteout_of_a_directory() -> Made:
    """A whiteout takes a whole directory."""
    return flat([tar(DIR, OLD, Item("g")), tar(Item(".wh.d"))], Item("g"))


@vector
def whiteout_after_its_name() -> Made:
    """A whiteout does not remove what its own layer has, in whatever order."""
    return flat([tar(DIR, OLD), tar(NEW, Item("d/.wh.f"))], DIR, NEW)


@vector
def whiteout_of_nothing() -> Made:
    """A whiteout of what is not there."""
    return flat([tar(Item("a")), tar(Item(".wh.b"))], Item("a"))


@vector
def opaque_directory() -> Made:
    """`.wh..wh..opq` empties the directory below, but for what its layer has in it."""
    layers = [tar(DIR, OLD, Item("d/g")), tar(DIR, Item("d/.wh..wh..opq"), Item("d/new"))]
    return flat(layers, DIR, Item("d/new"))


@vector
def file_replaces_directory() -> Made:
    """A file takes the place of a whole tree."""
    return flat([tar(DIR, OLD), tar(Item("d", b"file"))], Item("d", b"file"))


@vector
def directory_replaces_file() -> Made:
    """A directory takes the place of a file."""
    return flat([tar(Item("d", b"file")), tar(DIR, OLD)], DIR, OLD)


@vector
def directory_keeps_children() -> Made:
    """A directory over a directory changes its attributes and keeps what is in it."""
    other = directory("d/", 0o1777, uid=7, gid=8)
    return flat([tar(DIR, OLD), tar(other)], other, OLD)


@vector
def hard_link_to_a_lower_layer() -> Made:
    """A hard link to a file of the layer below."""
    return flat([tar(Item("a", b"a")), tar(hard_link("b", "a"))], Item("a", b"a"), "100644 0 0 1700000000 b => a")


@vector
def order_of_the_walk() -> Made:
    """Names are sorted within a directory, so `a/` and `a/x` come before `a.txt` (eif.md §7.4)."""
    tree = [directory("a/"), Item("a/x"), Item("a.txt"), Item("b")]
    return flat([tar(*reversed(tree[:2]), *tree[2:])], *tree)


@vector
def devices_and_fifo() -> Made:
    """Device nodes with their numbers, and a fifo."""
    tree = [
        Item("b", kind=tarfile.BLKTYPE, device=(8, 1)),
        Item("c", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
        Item("p", kind=tarfile.FIFOTYPE),
    ]
    return flat([tar(*tree)], *tree)


@vector
def set_id_bits() -> Made:
    """Set-user-ID, set-group-ID and sticky bits, and an owner."""
    tree = [directory("t/", 0o1777), Item("u", b"x", 0o6755, uid=1000, gid=65534)]
    return flat([tar(*tree)], *tree)


@vector
def pax_long_names() -> Made:
    """Names and targets that only PAX records hold, beyond ASCII."""
    long = "n" * 150 + "é"
    tree = [Item(f"{long}/{long}", b"x"), symlink("s", f"{long}/{long}")]
    made = "040755 0 0 1492533000 " + long + "/"
    return flat([tar(*tree, form=tarfile.PAX_FORMAT)], made, *tree)


@vector
def gnu_long_names() -> Made:
    """The same in GNU's headers L and K."""
    long = "n" * 150
    tree = [Item(f"{long}/{long}", b"x"), symlink("s", f"{long}/{long}")]
    made = "040755 0 0 1492533000 " + long + "/"
    return flat([tar(*tree, form=tarfile.GNU_FORMAT)], made, *tree)


@vector
def ustar_prefix() -> Made:
    """A name of more than a hundred bytes in ustar's two fields."""
    tree = [directory("p" * 90 + "/"), Item("p" * 90 + "/" + "n" * 90, b"x")]
    return flat([tar(*tree)], *tree)


@vector
def base_256() -> Made:
    """An owner and a time too large for octal digits, in GNU's base 256."""
    item = Item("f", uid=3000000000, time=1 << 33)
    return flat([tar(item, form=tarfile.GNU_FORMAT)], item)


@vector
def pax_time() -> Made:
    """A time with a fraction is rounded down."""
    return flat([extended(b"x", record("mtime", "1700000000.999"), Item("f", time=5))], Item("f"))


@vector
def pax_owner_and_size() -> Made:
    """Records for uid, gid and size take the place of the header's numbers."""
    content = record("uid", "70000") + record("gid", "80000") + record("size", "4")
    layer = extended(b"x", content, Item("f", b"data"))
    layer = layer[:1024] + patched(layer[1024:], 124, b"00000000000\0")
    return flat([layer], Item("f", b"data", uid=70000, gid=80000))


@vector
def pax_global() -> Made:
    """A global record holds for every member after it, unless a member says otherwise."""
    layer = extended(b"g", record("uid", "5"), Item("a"), Item("b"))
    return flat([layer], Item("a", uid=5), Item("b", uid=5))


@vector
def extended_attributes() -> Made:
    """PAX records of extended attributes are passed over, as upstream's images lose them."""
    content = record("SCHILY.xattr.user.a", "b") + record("LIBARCHIVE.creationtime", "1")
    return flat([extended(b"x", content, Item("f", b"x"))], Item("f", b"x"))


@vector
def dots_and_slashes() -> Made:
    """`./d//f` and `/d/f` are d/f."""
    return flat(
        [tar(directory("./"), directory("./d/"), Item("./d//f", b"old")), tar(Item("/d/g"))], DIR, OLD, Item("d/g")
    )


@vector
def dots_within() -> Made:
    """`d/../e` does not leave the root, and is e."""
    return flat([tar(DIR, Item("d/../e"))], DIR, Item("e"))


@vector
def through_an_absolute_link() -> Made:
    """A parent that is a link to `/d` leads to the image's own d, not the machine's."""
    return flat([tar(DIR, symlink("l", "/d"), Item("l/f", b"old"))], DIR, OLD, symlink("l", "/d"))


@vector
def through_a_link_that_climbs() -> Made:
    """A parent that is a link to `../../d` stays within the image's root."""
    return flat([tar(DIR, symlink("l", "../../d"), Item("l/f", b"old"))], DIR, OLD, symlink("l", "../../d"))


@vector
def without_end() -> Made:
    """An archive without the blocks of zeros that end one."""
    return flat([tar(Item("a", b"x"))[:1024]], Item("a", b"x"))


@vector
def empty_layer() -> Made:
    """A layer of zeros, and one without a byte."""
    return flat([bytes(1024), b""])


@vector
def after_the_end() -> Made:
    """What follows the end of the archive is not read."""
    return flat([tar(Item("a"))[:1536] + tar(Item("b"))], Item("a"))


@vector
def climbs_out() -> Made:
    """A name that leaves the root."""
    return refused(tar(Item("../f")), "layer entry")


@vector
def links_in_a_circle() -> Made:
    """A parent whose links lead to each other."""
    return refused(tar(symlink("a", "b"), symlink("b", "a"), Item("a/f")), "layer entry")


@vector
def hard_link_to_nothing() -> Made:
    """A hard link to what is not there."""
    return refused(tar(hard_link("b", "a")), "tar linkname", 0)


@vector
def hard_link_to_a_directory() -> Made:
    """A hard link to a directory."""
    return refused(tar(DIR, hard_link("b", "d")), "tar linkname", 512)


@vector
def hard_link_out() -> Made:
    """A hard link to a name outside the root."""
    return refused(tar(hard_link("b", "../a")), "layer entry")


@vector
def checksum() -> Made:
    """A header whose checksum is wrong."""
    layer = tar(Item("a"))
    return refused(b"b" + layer[1:], "tar header", 0)


@vector
def digits() -> Made:
    """A mode that is not octal."""
    return refused(patched(tar(Item("a")), 100, b"0000648\0"), "tar mode", 0)


@vector
def size_negative() -> Made:
    """A negative size in base 256."""
    return refused(patched(tar(Item("a")), 124, b"\xff" * 12), "tar size", 0)


@vector
def size_past_the_end() -> Made:
    """A file longer than the layer."""
    return refused(patched(tar(Item("a", b"x")), 124, b"00100000000\0"), "tar size", 0)


@vector
def size_largest() -> Made:
    """A file of 2^94 bytes, in base 256."""
    return refused(patched(tar(Item("a", b"x")), 124, b"\xc0" + bytes(11))[:1024], "tar size", 0)


@vector
def type_unknown() -> Made:
    """A type that nobody defined."""
    return refused(patched(tar(Item("a")), 156, b"Z"), "tar typeflag", 0)


@vector
def header_cut() -> Made:
    """The layer ends inside a header."""
    return refused(tar(Item("a"))[:300], "tar header", 0)


@vector
def long_name_too_long() -> Made:
    """A long name that claims eight gigabytes."""
    layer = extended(b"L", b"n" * 200, Item("a"))
    return refused(patched(layer, 124, b"77777777777\0"), "tar size", 0)


@vector
def pax_length_wrong() -> Made:
    """A record whose length runs past the header's data."""
    return refused(extended(b"x", b"99 path=b\n", Item("a")), "pax header", 512)


@vector
def pax_length_zero() -> Made:
    """A record of no length, at which a reader could stay for ever."""
    return refused(extended(b"x", b"0 path=b\n", Item("a")), "pax header", 512)


@vector
def pax_without_value() -> Made:
    """A record without an equals sign."""
    return refused(extended(b"x", b"8 path\n ", Item("a")), "pax header", 512)


@vector
def pax_number_wrong() -> Made:
    """A uid that is not a number."""
    return refused(extended(b"x", record("uid", "root"), Item("a")), "pax uid", 1024)


@vector
def pax_size_negative() -> Made:
    """A negative size in a record."""
    return refused(extended(b"x", record("size", "-512"), Item("a")), "tar size", 1024)
