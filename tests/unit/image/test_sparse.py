"""Sparse files in layers: every form that GNU tar writes, and maps that are none."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.image.tarballs import extended, layer, record, summed

from alcove.errors import ImageFormatError
from alcove.image.sources import oci, sparse, tar
from alcove.image.sources.limits import Limits
from alcove.image.sources.tree import walk

MakeLayout = Callable[..., Path]
FORMS = [
    ["--format=gnu"],
    ["--format=posix", "--sparse-version=0.0"],
    ["--format=posix", "--sparse-version=0.1"],
    ["--format=posix", "--sparse-version=1.0"],
]
MIB = 1 << 20


def sparse_file(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    """A file of that size with holes everywhere but at these offsets."""
    with path.open("wb") as file:
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
        file.truncate(size)


def contents(flattened: oci.Flattened) -> dict[str, str]:
    """SHA-256 of every regular file."""
    found = {}
    for name, node in walk(flattened.root):
        if not node.is_dir:
            digest = hashlib.sha256()
            for chunk in flattened.read(node.data) if node.data else ():
                digest.update(chunk)
            found[name.decode()] = digest.hexdigest()
    return found


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[-1].lstrip("-"))
def test_sparse_files_are_those_that_gnu_tar_read(make_layout: MakeLayout, tmp_path: Path, form: list[str]) -> None:
    """Few pieces, more than a header has room for, holes at either end, nothing but a hole, and a long name."""
    source = tmp_path / "source"
    source.mkdir()
    sparse_file(source / "few", 3 * MIB, {0: b"begin", MIB: os.urandom(5000)})
    sparse_file(source / "many", 32 * MIB, {n * 256 * 1024: bytes([n + 1]) * 777 for n in range(100)})
    sparse_file(source / "hole", 2 * MIB, {})
    sparse_file(source / "end", 2 * MIB + 7, {2 * MIB: b"the end"})
    sparse_file(source / ("n" * 150), MIB, {512 * 1024: b"long"})
    (source / "after").write_bytes(b"an ordinary file behind them")
    names = sorted(path.name for path in source.iterdir())
    archive = subprocess.run(
        ["tar", "--sparse", *form, "-C", str(source), "-cf", "-", *names], capture_output=True, check=True
    ).stdout
    assert len(archive) < 2 * MIB
    flattened = oci.flatten(oci.load_layout(make_layout(archive)), tmp_path)
    assert contents(flattened) == {name: hashlib.sha256((source / name).read_bytes()).hexdigest() for name in names}


def map_1_0(*numbers: int | str, size: int = 16, stored: bytes = b"abcde") -> bytes:
    """A sparse file `f` in PAX's form 1.0 with that map."""
    records = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")
    records += record("GNU.sparse.name", "f") + record("GNU.sparse.realsize", str(size))
    where = "".join(f"{number}\n" for number in numbers).encode()
    return extended(b"x", records) + layer(("made-up", {"data": where + bytes(-len(where) % 512) + stored}))


def map_0_1(text: str, size: str = "16") -> bytes:
    """The same in form 0.1."""
    records = record("GNU.sparse.size", size) + record("GNU.sparse.map", text) + record("GNU.sparse.name", "f")
    return extended(b"x", records) + layer(("made-up", {"data": b"abcde"}))


def map_gnu(*numbers: int, size: int = 16) -> bytes:
    """The same in GNU's old form."""
    archive = layer(("f", {"data": b"abcde"}))
    where = b"".join(b"%011o\0" % number for number in numbers)
    header = archive[:156] + b"S" + archive[157:386] + where + bytes(97 - len(where)) + b"%011o\0" % size
    return summed(header + bytes(512 - len(header))) + archive[512:]


def test_the_helpers_make_sound_maps() -> None:
    """What the tests below break is sound when it is not broken."""
    for archive in (map_1_0(2, 4, 3, 12, 2), map_0_1("4,3,12,2"), map_gnu(4, 3, 12, 2)):
        (member,) = tar.members(io.BytesIO(archive), len(archive))
        assert (member.name, member.size, member.stored, member.pieces) == (b"f", 16, 5, ((4, 3), (12, 2)))


@pytest.mark.parametrize(
    "archive",
    [
        map_1_0(2, 4, 3, 5, 2),  # on each other
        map_1_0(2, 12, 2, 4, 3),  # backwards
        map_1_0(2, 4, 3, 15, 2),  # past the end of the file
        map_1_0(2, 4, 3, 12, 1),  # more is stored
        map_1_0(2, 4, 3, 12, 3),  # less is stored
        map_1_0(1_000_000_000),
        map_1_0(1, 2),  # ends in the middle
        map_1_0("x", 4, 3),
        map_1_0("9" * 30, 4, 3),
        map_1_0("", 4, 3),
        map_1_0("1" * 4000),
        map_1_0(size=5, stored=b""),
        map_0_1("4,3,12"),
        map_0_1("4,,12,2"),
        map_0_1("4,3,-12,2"),
        map_0_1("4,3,12,2", "x"),
        map_gnu(4, 3, 5, 2),
        map_gnu(4, 3, 12, 2, size=13),
    ],
)
def test_a_map_that_is_none_is_refused(archive: bytes) -> None:
    """With the field, and the place of the header."""
    with pytest.raises(ImageFormatError) as caught:
        list(tar.members(io.BytesIO(archive), len(archive)))
    assert caught.value.field == "tar sparse"
    assert caught.value.offset is not None


def test_an_unknown_form_is_refused() -> None:
    """A map of a form to come is not taken for an ordinary file."""
    archive = extended(b"x", record("GNU.sparse.major", "2")) + layer(("f", {"data": b"abcde"}))
    with pytest.raises(ImageFormatError, match="form"):
        list(tar.members(io.BytesIO(archive), len(archive)))


def test_a_chain_of_maps_without_end_is_refused() -> None:
    """GNU's old form says in each block whether another follows; the layer ends instead."""
    header = bytearray(map_gnu(4, 3, 12, 2)[:512])
    header[482] = 1
    more = bytearray(512)
    more[504] = 1
    for archive in (summed(bytes(header)), summed(bytes(header)) + bytes(more) * 5):
        with pytest.raises(ImageFormatError):
            list(tar.members(io.BytesIO(archive), len(archive)))


@given(st.lists(st.integers(0, 40), max_size=9), st.integers(0, 60))
def test_a_map_is_sound_or_refused(numbers: list[int], size: int) -> None:
    """What is accepted lies in order within the file, and is what is stored."""
    archive = map_1_0(len(numbers) // 2, *numbers, size=size)
    try:
        (member,) = tar.members(io.BytesIO(archive), len(archive))
    except ImageFormatError:
        return
    runs = list(sparse.expanded(member.pieces or (), member.size))
    assert sum(length for _, length in runs) == size
    assert sum(length for stored, length in runs if stored) == member.stored == 5


def test_holes_cost_no_memory_and_no_disk(make_layout: MakeLayout, tmp_path: Path) -> None:
    """A gigabyte of zeros is read from a layer of two kilobytes, a chunk at a time."""
    size = 1 << 30
    flattened = oci.flatten(oci.load_layout(make_layout(map_1_0(2, 4, 3, size - 2, 2, size=size))), tmp_path)
    ((_, node),) = walk(flattened.root)
    assert node.data is not None
    tracemalloc.start()
    total = sum(len(chunk) for chunk in flattened.read(node.data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == size
    assert peak < 8 * MIB


def test_holes_count_as_bytes_of_the_layer(make_layout: MakeLayout, tmp_path: Path) -> None:
    """A small layer of enormous files is a bomb too."""
    image = oci.load_layout(make_layout(map_1_0(2, 4, 3, 12, 2, size=1 << 40)))
    with pytest.raises(ImageFormatError, match="larger than"):
        oci.flatten(image, tmp_path)
    with pytest.raises(ImageFormatError, match="larger than 3000 bytes"):
        oci.flatten(oci.load_layout(make_layout(map_1_0(1, 0, 5, size=2000))), tmp_path, Limits(layer=3000))
