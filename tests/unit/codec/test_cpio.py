"""cpio archives against the golden values of eif.md §7."""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.codec import cpio
from alcove.errors import ImageFormatError

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)


def test_the_boot_ramdisk_of_the_specification_is_reproduced() -> None:
    """Three entries of known content give the archive of eif.md §7.2, byte for byte."""
    entries = [cpio.directory(b"dev"), cpio.file(b"init", b"init\n", 0o755), cpio.file(b"nsm.ko", b"nsm\n", 0o755)]
    data = b"".join(cpio.archive(entries))
    assert len(data) == 512
    assert hashlib.sha256(data).hexdigest() == "37787339eec5399d26a9bc470479c00989c80ecef3579f0012e05922bc322166"
    assert data.startswith(
        b"070701000002d1000041ed00000000000000000000000258f63f080000000000000003000000010000000000000000"
        b"0000000400000000dev"
    )


@given(st.lists(st.tuples(NAMES, st.binary(max_size=40))))
def test_the_declared_size_is_the_size(members: list[tuple[bytes, bytes]]) -> None:
    """`archive_size` foretells the length of any archive, which is a multiple of 512."""
    entries = [cpio.file(name, content) for name, content in members]
    size = sum(len(chunk) for chunk in cpio.archive(entries))
    assert size == cpio.archive_size(entries)
    assert size % 512 == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": stat.S_IFSOCK},
        {"mtime": -1},
        {"mtime": 1 << 32},
        {"size": 1 << 32},
        {"uid": 1 << 32},
        {"gid": -1},
        {"mode": stat.S_IFREG | 1 << 32},
        {"rdev": (1 << 32, 0)},
        {"name": b""},
        {"name": b"a\0b"},
        {"name": b"a" * 4096},
    ],
)
def test_what_newc_cannot_hold_is_refused(fields: dict[str, object]) -> None:
    """Sockets, fields of more than 32 bits and names that the kernel would skip do not become entries."""
    with pytest.raises(ImageFormatError):
        cpio.Entry(**({"name": b"x", "mode": stat.S_IFREG} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"ab", b"abcd"])
def test_data_of_another_length_than_declared_is_refused(content: bytes) -> None:
    """A file that changed its size while it was read does not shift the rest of the archive."""
    entry = cpio.Entry(b"x", stat.S_IFREG | 0o644, size=3, data=lambda: (content,))
    with pytest.raises(ImageFormatError, match="not 3 bytes"):
        list(cpio.archive([entry]))


@pytest.mark.skipif(
    shutil.which("bsdtar") is None and shutil.which("cpio") is None, reason="no program reads cpio here"
)
def test_another_program_reads_the_archive() -> None:
    """Cpio or bsdtar lists the names in order."""
    data = b"".join(
        cpio.archive([cpio.directory(b"dir"), cpio.file(b"dir/one", b"1"), cpio.symlink(b"two", b"one", 0o777)])
    )
    argv = ["cpio", "-t", "--quiet"] if shutil.which("cpio") else ["bsdtar", "-tf", "-"]
    listed = subprocess.run(argv, input=data, capture_output=True, check=True).stdout.split()
    assert [name.rstrip(b"/") for name in listed] == [b"dir", b"dir/one", b"two"]


@given(st.lists(st.tuples(NAMES, st.lists(st.binary(max_size=9), max_size=4))))
def test_every_entry_is_laid_out_as_newc(members: list[tuple[bytes, list[bytes]]]) -> None:
    """Header, name and data stand at multiples of 4 whatever their lengths; inodes count, and zeros fill the gaps."""
    entries = [
        cpio.Entry(name, stat.S_IFREG | 0o640, 7, 8, 9, sum(map(len, data)), data=lambda data=data: data)  # type: ignore[misc]
        for name, data in members
    ]
    expected = b""
    for inode, (name, data) in enumerate([*members, (b"TRAILER!!!", [])], 721):
        content = b"".join(data)
        own = (0, 0, 0, 1, 0) if name == b"TRAILER!!!" and inode == 721 + len(members) else (0o100640, 7, 8, 1, 9)
        fields = (inode, *own, len(content), 3, 1, 0, 0, len(name) + 1, 0)
        expected += b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"
        expected += bytes(-len(expected) % 4) + content
        expected += bytes(-len(expected) % 4)
    assert b"".join(cpio.archive(entries)) == expected + bytes(-len(expected) % 512)
