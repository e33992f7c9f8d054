"""What ramdisks hold, and the explanation of a whole image."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import stat
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.image.archives import APPLICATION, BOOT, archive, write

from alcove.codec import cpio
from alcove.errors import ImageFormatError, InputError
from alcove.image.contents import Item, items, printable
from alcove.image.describe import describe_eif
from alcove.image.explain import explain, explain_eif
from alcove.image.reader import read_eif

PLAIN = archive(*BOOT)
OTHER = archive(cpio.file(b"extra", b"x"))


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def names(found: list[Item]) -> list[bytes]:
    return [item.member.name for item in found]


@pytest.mark.parametrize("size", [1, 7, 4096])
@pytest.mark.parametrize(
    "ramdisk",
    [
        PLAIN + OTHER,
        gzip.compress(PLAIN) + gzip.compress(OTHER),
        PLAIN + gzip.compress(OTHER),
        gzip.compress(PLAIN) + bytes(-len(gzip.compress(PLAIN)) % 4) + OTHER,
        bytes(512) + gzip.compress(PLAIN + OTHER) + bytes(13),
    ],
    ids=["plain", "gzip", "plain-gzip", "gzip-plain", "zeros"],
)
def test_archives_and_gzip_streams_follow_each_other(ramdisk: bytes, size: int) -> None:
    """Every mixture that the kernel unpacks gives the same members, in whatever chunks it comes."""
    found = list(items(cut(ramdisk, size)))
    assert names(found) == [b"dev", b"init", b"nsm.ko", b"extra"]
    assert found[1].sha256 == hashlib.sha256(b"init\n").digest()
    assert found[0].sha256 is None


@pytest.mark.parametrize(
    ("ramdisk", "message"),
    [
        (b"x" + PLAIN, "neither cpio"),
        (b"x", "neither cpio"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (gzip.compress(PLAIN)[:-4], "ends inside"),
        (gzip.compress(PLAIN[:150]), "ends inside"),
        (gzip.compress(PLAIN)[:30] + bytes(60), "broken compression"),
        (gzip.compress(b"text"), "neither"),
        (gzip.compress(PLAIN + b"x"), "neither"),
    ],
)
def test_what_the_kernel_would_not_unpack_is_refused(ramdisk: bytes, message: str) -> None:
    """Other compressions are named; noise, cut streams and noise inside of streams are told apart."""
    with pytest.raises(ImageFormatError, match=message):
        list(items([ramdisk]))


@settings(deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda noise: b"\x1f\x8b\x08" + noise))
def test_bytes_of_any_kind_are_members_or_one_error(data: bytes) -> None:
    """Nothing but ImageFormatError comes out, and where a ramdisk ends, it ended well."""
    try:
        found = list(items([data]))
    except ImageFormatError:
        return
    assert found == list(items(cut(data, 3)))


def test_a_decompression_bomb_meets_its_limit() -> None:
    """A gzip stream stops at the limit, before it fills the memory, and the limit can be raised."""
    squeeze = zlib.compressobj(9, wbits=31)
    head = cpio.Entry(b"bomb", stat.S_IFREG, size=1 << 28, data=lambda: (bytes(1 << 20) for _ in range(256)))
    bomb = b"".join(squeeze.compress(chunk) for chunk in cpio.archive([head])) + squeeze.flush()
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    with pytest.raises(ImageFormatError, match="more than 8388608 bytes"):
        list(items([bomb], limit=1 << 23))
    assert len(list(items([bomb], limit=1 << 29))) == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_an_image_is_explained_to_the_last_file(tmp_path: Path) -> None:
    """Sections with their registers and digests, members with theirs, and registers equal to describe-eif's."""
    path = write(tmp_path / "a.eif")
    with path.open("rb") as file:
        lines = [line.to_json() for line in explain(file, read_eif(file))]
    sections = {line["section"]: line["pcrs"] for line in lines if line["kind"] == "section"}
    assert sections == {"kernel": [0, 1], "cmdline": [0, 1], "metadata": [], "ramdisk 0": [0, 1], "ramdisk 1": [0, 2]}
    digests = {line["section"]: line["sha384"] for line in lines if line["kind"] == "digest"}
    assert digests["kernel"] == hashlib.sha384(b"kernel").hexdigest()
    shell = next(line for line in lines if line.get("name") == "rootfs/bin/sh")
    assert shell["sha256"] == hashlib.sha256(b"shell").hexdigest()
    assert (shell["mode"], shell["type"], shell["section"]) == ("0755", "file", "ramdisk 1")
    measured = {f"PCR{line['pcr']}": line["value"] for line in lines if line["kind"] == "register"}
    described = describe_eif(path)["Measurements"]
    assert measured == {name: value for name, value in described.items() if name.startswith("PCR")}
    assert sum(line["kind"] == "member" for line in lines) == len(BOOT) + len(APPLICATION)
    json.dumps(lines)


def test_a_ramdisk_that_cannot_be_listed_is_still_measured(tmp_path: Path) -> None:
    """The digest and the registers come, and a line says why there are no files."""
    text = list(explain_eif(write(tmp_path / "a.eif", b"ramdisk0", b"ramdisk1")))
    assert sum("its files cannot be listed" in line for line in text) == 2
    assert any(line.endswith(hashlib.sha384(b"ramdisk0").hexdigest()) for line in text)


def test_names_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    """Escape sequences, line feeds and bytes that are no UTF-8 are shown escaped, each in its own way."""
    entries = cpio.directory(b"rootfs"), cpio.file(b"rootfs/\x1b[2J\n\xff\\", b"")
    text = list(explain_eif(write(tmp_path / "a.eif", PLAIN, archive(*entries))))
    assert all(line.isprintable() for line in text)
    assert any(line.endswith(r"rootfs/\x1b[2J\n\xff\\") for line in text)


@settings(deadline=None)
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_two_names_never_look_the_same(a: bytes, b: bytes) -> None:
    """What is shown determines the bytes."""
    assert (printable(a) == printable(b)) == (a == b)


def test_an_image_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    """E19 with the path."""
    with pytest.raises(InputError) as caught:
        list(explain_eif(tmp_path / "none"))
    assert caught.value.code == "E19"


def test_the_explanation_takes_constant_memory(tmp_path: Path) -> None:
    """An image with a ramdisk of 64 MiB is explained in less than 8."""
    big = cpio.Entry(b"rootfs/big", stat.S_IFREG, size=1 << 26, data=lambda: (bytes(1 << 20) for _ in range(64)))
    path = write(tmp_path / "a.eif", PLAIN, archive(big))
    file = io.BufferedReader(io.FileIO(path))
    tracemalloc.start()
    count = sum(1 for _ in explain(file, read_eif(file)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    file.close()
    assert count > 10
    assert peak < 8 << 20
