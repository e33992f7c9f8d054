"""Taking images apart: the parts byte for byte, nothing outside of the directory, nothing half-written."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.image.archives import APPLICATION, BOOT, METADATA, archive, write

from alcove.codec import cpio
from alcove.codec.cpio_reader import CpioReader
from alcove.errors import ImageFormatError, InputError
from alcove.image.extract import extract_eif, write_rootfs
from alcove.image.rootfs import rootfs_tar
from alcove.image.sign import sign_eif
from alcove.image.signing import Signer


def listing(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def rootfs(tmp_path: Path, *entries: cpio.Entry) -> dict[str, tarfile.TarInfo]:
    """What the tar of an application with these entries lists."""
    write_rootfs(write(tmp_path / "a.eif", archive(*BOOT), archive(*entries)), tmp_path / "root.tar")
    return listing(tmp_path / "root.tar")


def test_the_parts_are_those_of_the_image(tmp_path: Path, pem: tuple[bytes, bytes]) -> None:
    """Every section's data is a file under a plain name, certificate and signature included."""
    eif = write(tmp_path / "a.eif", archive(*BOOT), gzip.compress(archive(*APPLICATION)))
    sign_eif(eif, Signer.from_pem(*pem))
    extracted = extract_eif(eif, tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(extracted.files) == sorted(path.name for path in out.iterdir())
    assert (out / "kernel").read_bytes() == b"kernel"
    assert (out / "cmdline").read_bytes() == b"console=ttyS0 quiet"
    assert (out / "metadata.json").read_bytes() == METADATA.pack()
    assert (out / "ramdisk-0.cpio").read_bytes() == archive(*BOOT)
    assert gzip.decompress((out / "ramdisk-1.cpio.gz").read_bytes()) == archive(*APPLICATION)
    assert (out / "signing-certificate.pem").read_bytes() == pem[0]
    assert (out / "signature.cose").read_bytes()[0] == 0x84
    assert extracted.warnings == ()


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    """E19, and the directory is as it was; with `replace` the parts go beside what is there."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    eif = write(tmp_path / "a.eif")
    with pytest.raises(InputError, match="not empty") as caught:
        extract_eif(eif, out)
    assert caught.value.code == "E19"
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "kernel").symlink_to(tmp_path / "victim")
    extract_eif(eif, out, replace=True)
    assert (out / "mine").read_text() == "x"
    assert not (out / "kernel").is_symlink()
    assert not (tmp_path / "victim").exists()
    assert not list(out.glob(".alcove*"))


def test_a_damaged_image_leaves_nothing(tmp_path: Path) -> None:
    """An image that cannot be read makes no directory; one with a wrong checksum is told."""
    eif = write(tmp_path / "a.eif")
    whole = eif.read_bytes()
    eif.write_bytes(whole[:-1])
    with pytest.raises(ImageFormatError):
        extract_eif(eif, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.eif"]
    eif.write_bytes(whole[:-1] + b"\1")
    assert "checksum" in extract_eif(eif, tmp_path / "out").warnings[0]


@pytest.mark.parametrize("parent", ["none/out", "file/out", "file"])
def test_a_place_that_cannot_be_is_an_input_error(tmp_path: Path, parent: str) -> None:
    """A missing parent, or a file where the directory should be."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError) as caught:
        extract_eif(write(tmp_path / "a.eif"), tmp_path / parent)
    assert caught.value.code == "E19"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.eif", "file"]


def test_the_root_file_system_is_what_the_kernel_leaves(tmp_path: Path) -> None:
    """Below rootfs/ only; a directory that comes again takes the later mode, owner and time."""
    found = rootfs(tmp_path, *APPLICATION)
    assert list(found) == ["bin", "bin/sh", "bin/ls", "tmp"]
    assert (found["tmp"].mode, found["tmp"].mtime) == (0o755, cpio.DEFAULT_TIME)
    assert (found["bin/sh"].mode, found["bin/sh"].size) == (0o755, 5)
    assert found["bin/ls"].linkname == "sh"
    with tarfile.open(tmp_path / "root.tar") as tar:
        member = tar.extractfile("bin/sh")
        assert member is not None
        assert member.read() == b"shell"


def test_owners_devices_and_bits_need_no_root(tmp_path: Path) -> None:
    """They are written as numbers, whoever runs this; long names and large ids fit."""
    long = b"n" * 200
    found = rootfs(
        tmp_path,
        cpio.Entry(b"rootfs/null", stat.S_IFCHR | 0o666, rdev=(1, 3)),
        cpio.Entry(b"rootfs/pipe", stat.S_IFIFO | 0o600),
        cpio.Entry(b"rootfs/su", stat.S_IFREG | 0o4755, uid=0xFFFFFFFE, gid=12),
        cpio.directory(b"rootfs/" + long),
        cpio.file(b"rootfs/" + long + b"/\xff", b"x" * 513),
        cpio.symlink(b"rootfs/link", long * 15, 0o777),
    )
    assert (found["null"].ischr(), found["null"].devmajor, found["null"].devminor) == (True, 1, 3)
    assert found["pipe"].isfifo()
    assert (found["su"].mode, found["su"].uid, found["su"].gid) == (0o4755, 0xFFFFFFFE, 12)
    assert found[f"{long.decode()}/\udcff"].size == 513
    assert found["link"].linkname == (long * 15).decode()


def test_the_later_file_of_a_name_counts(tmp_path: Path) -> None:
    """As in the kernel, which opens and truncates it."""
    rootfs(
        tmp_path, cpio.file(b"rootfs/a", b"old and longer"), cpio.file(b"rootfs/b", b""), cpio.file(b"rootfs/a", b"new")
    )
    with tarfile.open(tmp_path / "root.tar") as tar:
        assert tar.getnames() == ["b", "a"]
        member = tar.extractfile("a")
        assert member is not None
        assert member.read() == b"new"


def linked(*members: tuple[bytes, bytes]) -> bytes:
    """An archive as GNU cpio writes hard links: one inode, two links, the data where it is given."""
    entries = [cpio.file(name, data) for name, data in members]
    data = bytearray(archive(*entries))
    at = 0
    for entry in entries:
        data[at + 6 : at + 14] = b"%08x" % 7
        data[at + 38 : at + 46] = b"%08x" % len(members)
        at += (110 + len(entry.name) + 1 + 3) // 4 * 4 + (entry.size + 3) // 4 * 4
    return bytes(data)


def test_hard_links_stay_hard_links(tmp_path: Path) -> None:
    """The name that carries the data is the file, wherever it comes; the others are links to it."""
    application = linked((b"rootfs/a", b""), (b"rootfs/b", b""), (b"rootfs/c", b"data"))
    write_rootfs(write(tmp_path / "a.eif", archive(*BOOT), application), tmp_path / "root.tar")
    found = listing(tmp_path / "root.tar")
    assert found["c"].isreg()
    assert {name: found[name].linkname for name in ("a", "b")} == {"a": "c", "b": "c"}
    assert all(found[name].islnk() for name in ("a", "b"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([cpio.file(b"rootfs/../etc/passwd", b"x")], "leaves"),
        ([cpio.file(b"../rootfs/x", b"x")], "leaves"),
        ([cpio.symlink(b"rootfs/d", b"/etc", 0o777), cpio.file(b"rootfs/d/passwd", b"x")], "no directory"),
        ([cpio.file(b"rootfs/d/passwd", b"x"), cpio.symlink(b"rootfs/d", b"/etc", 0o777)], "no directory"),
        ([cpio.directory(b"rootfs/d"), cpio.symlink(b"rootfs/d", b"/etc", 0o777)], "something else"),
        ([cpio.file(b"other", b"x")], "no rootfs"),
        ([], "no rootfs"),
    ],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, entries: list[cpio.Entry], message: str) -> None:
    """`..`, a name below a symlink, a directory that turns into one: an error, and no file is left."""
    with pytest.raises(ImageFormatError, match=message):
        rootfs(tmp_path, *entries)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.eif"]


def test_a_tar_that_is_not_whole_is_not_there(tmp_path: Path) -> None:
    """An old archive stays when the new one fails; a device is not replaced by a file."""
    (tmp_path / "root.tar").write_text("old")
    with pytest.raises(ImageFormatError):
        write_rootfs(write(tmp_path / "a.eif", b"ramdisk0", b"ramdisk1"), tmp_path / "root.tar")
    assert (tmp_path / "root.tar").read_text() == "old"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        write_rootfs(write(tmp_path / "b.eif"), tmp_path / "pipe")


NAMES = st.lists(st.sampled_from([b"rootfs", b"a", b"b", b"..", b".", b""]), min_size=1, max_size=4).map(b"/".join)
MODES = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFSOCK])


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES.filter(bool), MODES, st.binary(max_size=3)), max_size=6))
def test_no_archive_leads_out(members: list[tuple[bytes, int, bytes]]) -> None:
    """Whatever the members, the tar holds no absolute name and no `..`, and nothing below a symlink."""
    entries = [
        cpio.Entry(
            b"rootfs/" + name,
            stat.S_IFREG if mode == stat.S_IFSOCK else mode,
            size=len(data),
            data=lambda data=data: (data,),
        )
        for name, mode, data in members
    ]
    data = archive(*entries)
    try:
        tar = b"".join(rootfs_tar(lambda: CpioReader().receive(data)))
    except ImageFormatError:
        return
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        found = opened.getmembers()
    assert len({member.name for member in found}) == len(found)
    links = {member.name for member in found if member.issym()}
    for member in found:
        parts = member.name.split("/")
        assert ".." not in parts
        assert not member.name.startswith("/")
        assert not {"/".join(parts[:count]) for count in range(1, len(parts))} & links


def test_a_large_file_passes_in_constant_memory(tmp_path: Path) -> None:
    """64 MiB of one file, parts and tar, in less than 24."""
    big = cpio.Entry(b"rootfs/big", stat.S_IFREG, size=1 << 26, data=lambda: (bytes(1 << 20) for _ in range(64)))
    eif = write(tmp_path / "a.eif", archive(*BOOT), archive(big))
    tracemalloc.start()
    extract_eif(eif, tmp_path / "out")
    write_rootfs(eif, tmp_path / "root.tar")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert listing(tmp_path / "root.tar")["big"].size == 1 << 26
    assert peak < 24 << 20
