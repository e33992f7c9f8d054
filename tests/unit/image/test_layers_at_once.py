"""Layers are made ready several at a time, from where they are; what comes out does not tell."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from alcove.errors import ImageFormatError
from alcove.image.lanes import COPIED, PIECE, WINDOW, Chunk, gathered
from alcove.image.sources import oci
from alcove.image.sources.container import silent
from alcove.image.sources.fetch import ContainerSource
from alcove.image.sources.layers import use_layers
from alcove.image.sources.limits import Limits
from alcove.image.sources.tree import walk
from alcove.image.sources.unpack import ahead

MakeLayout = Callable[..., Path]


def layer(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def break_blob(image: oci.OciImage, number: int) -> None:
    path = image.layers[number].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_the_order_of_layers_is_kept(
    make_layout: MakeLayout, tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    """A later layer wins, however much sooner than an earlier one it is ready."""
    layers = [layer("same", bytes([n]) * (1 << 20 >> n)) for n in range(9)]
    flattened = oci.flatten(oci.load_layout(make_layout(*layers, compress=compress)), tmp_path)
    ((name, node),) = walk(flattened.root)
    assert node.data is not None
    assert (name, b"".join(flattened.read(node.data))) == (b"same", bytes([8]) * (1 << 20 >> 8))


@pytest.mark.parametrize("broken", [0, 3, 5])
def test_a_broken_layer_ends_the_work_on_all(make_layout: MakeLayout, tmp_path: Path, broken: int) -> None:
    """The error is that of the broken layer, and no thread goes on."""
    before = set(threading.enumerate())
    image = oci.load_layout(make_layout(*(layer(f"file-{n}", bytes([n]) * 500_000) for n in range(6))))
    break_blob(image, broken)
    with pytest.raises(ImageFormatError, match=f"the content of {image.layers[broken].digest}"):
        oci.flatten(image, tmp_path)
    assert set(threading.enumerate()) == before


def test_the_lowest_broken_layer_is_the_one_that_is_told(make_layout: MakeLayout, tmp_path: Path) -> None:
    """Of two errors the same one comes out each time, whichever was found first."""
    image = oci.load_layout(make_layout(layer("a", bytes(3_000_000)), layer("b", b"b")))
    break_blob(image, 0)
    break_blob(image, 1)
    with pytest.raises(ImageFormatError, match=image.layers[0].digest):
        oci.flatten(image, tmp_path)


def test_a_broken_tree_is_told_before_a_broken_digest_above_it(make_layout: MakeLayout, tmp_path: Path) -> None:
    """The lowest layer's error is told whatever it is, though the small one above is refused long before."""
    image = oci.load_layout(make_layout(b"\1" * 3_000_000, layer("b", b"b"), layer("c", b"c")))
    break_blob(image, 1)
    with pytest.raises(ImageFormatError, match="not an octal number"):
        oci.flatten(image, tmp_path)


def test_nobody_looks_into_a_layer_whose_digest_is_wrong(make_layout: MakeLayout, tmp_path: Path) -> None:
    """Only layers whose digests are right are given out, each once, whatever the others are."""
    image = oci.load_layout(make_layout(*(layer(f"file-{n}", bytes([n]) * 200_000 * n) for n in range(6))))
    break_blob(image, 3)
    used: list[int] = []
    with pytest.raises(ImageFormatError, match=image.layers[3].digest):
        use_layers(image.layers, tmp_path, Limits(), silent, lambda index, *_: used.append(index))
    assert {0, 1, 2} <= set(used) <= {0, 1, 2, 4, 5}
    assert len(used) == len(set(used))


def linked(name: str, target: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.LNKTYPE, target
        archive.addfile(info)
    return out.getvalue()


def test_a_link_into_a_lower_layer_waits_for_it(make_layout: MakeLayout, tmp_path: Path) -> None:
    """A small layer that links to a file of a large one below is ready first, and links to that very file."""
    flattened = oci.flatten(
        oci.load_layout(make_layout(layer("a", b"1" * 3_000_000), linked("b", "a"), linked("c", "b"))), tmp_path
    )
    assert [name for name, _ in walk(flattened.root)] == [b"a", b"b", b"c"]
    assert len({id(node) for _, node in walk(flattened.root)}) == 1


def test_a_tree_that_is_made_twice_is_paid_once(make_layout: MakeLayout, tmp_path: Path) -> None:
    """Waiting for a lower layer costs nothing of what names may take."""
    names = [layer(f"file-{n}", b"") for n in range(20)]
    above = io.BytesIO()
    with tarfile.open(fileobj=above, mode="w") as archive:
        for n in range(100):
            archive.addfile(tarfile.TarInfo(f"more-{n}"))
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.LNKTYPE, "large"
        archive.addfile(info)
    image = oci.load_layout(make_layout(layer("large", bytes(3_000_000)), *names, above.getvalue()))
    flattened = oci.flatten(image, tmp_path, Limits(tree=122 * 510))
    assert len(list(walk(flattened.root))) == 122


def test_without_a_thread_the_layers_are_made_ready_one_after_the_other(
    make_layout: MakeLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no thread left to give; the lowest failure is still the one that is told."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    image = oci.load_layout(make_layout(*(layer(f"file-{n}", bytes(1000 * n)) for n in range(6))))
    assert len(list(walk(oci.flatten(image, tmp_path).root))) == 6
    break_blob(image, 4)
    break_blob(image, 1)
    with pytest.raises(ImageFormatError, match=image.layers[1].digest):
        oci.flatten(image, tmp_path)


def test_nobody_works_on_for_who_gave_up(make_layout: MakeLayout, tmp_path: Path) -> None:
    """Ctrl-C while a layer is looked into stops those that are on their way."""
    before = set(threading.enumerate())
    image = oci.load_layout(make_layout(*(layer(f"file-{n}", bytes(9_000_000)) for n in range(6))))

    def interrupted(_index: int, _spool: Path, _check: Callable[[], None]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use_layers(image.layers, tmp_path, Limits(), silent, interrupted)
    assert set(threading.enumerate()) == before


def test_an_error_stops_a_layer_that_is_looked_into(make_layout: MakeLayout, tmp_path: Path) -> None:
    """Who looks into a layer asks whether anybody waits for it, and is stopped when a lower layer is broken."""
    image = oci.load_layout(make_layout(layer("a", bytes(20_000_000)), layer("b", b"b")))
    break_blob(image, 0)

    def patient(_index: int, _spool: Path, check: Callable[[], None]) -> None:
        while True:
            check()

    with pytest.raises(ImageFormatError, match=image.layers[0].digest):
        use_layers(image.layers, tmp_path, Limits(), silent, patient)


def test_a_local_layout_is_not_copied(make_layout: MakeLayout, tmp_path: Path) -> None:
    """The image of an `oci:` directory is read where it is: no program is needed, and no room."""
    layout = make_layout(layer("a", b"a"))
    source = ContainerSource("x86_64", {"PATH": "/nonexistent"}, print)
    image = source.fetch(f"oci:{layout}", tmp_path / "work")
    assert isinstance(image, oci.OciImage)
    assert image.layers[0].path.is_relative_to(layout)
    assert not (tmp_path / "work").exists()


def test_a_layer_that_is_a_pipe_is_missing(make_layout: MakeLayout, tmp_path: Path) -> None:
    """A layout in which a blob is no file does not make the build wait for ever."""
    image = oci.load_layout(make_layout(layer("a", b"a")))
    path = image.layers[0].path
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ImageFormatError, match="is missing"):
        oci.flatten(image, tmp_path)


def test_what_is_lent_holds_while_it_is_hashed(make_layout: MakeLayout, tmp_path: Path) -> None:
    """Memory is used again for files of every size, and never for a piece that one of the two hashes may be at."""
    sizes = [3 * PIECE, *[100_000] * 30, 2 * PIECE + 7, *[COPIED, COPIED - 1] * 9, 12 * PIECE, *[300_000] * 12, 5] * 2
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{number:04}")
            info.size = size
            archive.addfile(info, io.BytesIO(os.urandom(size)))
    flattened = oci.flatten(oci.load_layout(make_layout(out.getvalue())), tmp_path)
    found = [node.data for _, node in walk(flattened.root) if node.data]
    whole, in_use = hashlib.sha256(), deque[tuple[Chunk, bytes]](maxlen=WINDOW - 1)
    for piece in gathered(chunk for data in found for chunk in flattened.lend(data)):
        assert all(used == before for used, before in in_use)
        in_use.append((piece, bytes(piece)))
        whole.update(piece)
    assert whole.digest() == hashlib.sha256(b"".join(b"".join(flattened.read(data)) for data in found)).digest()


@pytest.mark.parametrize("case", [([1], 2, 1), ([3, 1, 1], 2, 1), ([1, 1, 1], 2, 0), ([1], 1, 0)])
def test_a_layer_that_outlasts_the_others_has_two_threads(
    make_layout: MakeLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[list[int], int, int]
) -> None:
    """One that is more than a core's share of all; none where there is one core, or the others keep all busy."""
    sizes, cores, large = case
    unpacked = []

    def noted(pieces: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
        unpacked.append(pieces)
        return ahead(pieces)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("alcove.image.sources.layers.ahead", noted)
    tars = [layer(f"f{number}", os.urandom(size << 14)) for number, size in enumerate(sizes)]
    flattened = oci.flatten(oci.load_layout(make_layout(*tars, compress=gzip.compress)), tmp_path)
    assert len(list(walk(flattened.root))) == len(sizes)
    assert len(unpacked) == large
