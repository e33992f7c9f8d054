"""Layers of a container image, flattened."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.image.tarballs import hard_link, layer, symlink

from alcove.errors import ImageFormatError, MachineError
from alcove.image.sources import oci, tar
from alcove.image.sources.tree import Node, split, walk

MakeLayout = Callable[..., Path]


@pytest.fixture
def flatten(make_layout: MakeLayout, tmp_path: Path) -> Callable[..., oci.Flattened]:
    """Flattens layers given as tar bytes."""

    def run(*layers: bytes, compress: Callable[[bytes], bytes] = bytes) -> oci.Flattened:
        return oci.flatten(oci.load_layout(make_layout(*layers, compress=compress)), tmp_path)

    return run


Flatten = Callable[..., oci.Flattened]


def names(flattened: oci.Flattened) -> list[str]:
    return [name.decode() for name, _ in walk(flattened.root)]


def node(flattened: oci.Flattened, path: str) -> Node:
    return dict(walk(flattened.root))[path.encode()]


def content(flattened: oci.Flattened, path: str) -> bytes:
    data = node(flattened, path).data
    return b"".join(flattened.read(data)) if data else b""


def test_later_layers_win(flatten: Flatten) -> None:
    """A file of the same name takes the place of the one below."""
    flat = flatten(layer("d/", ("d/f", {"data": b"old"})), layer(("d/f", {"data": b"new", "mode": 0o600})))
    assert content(flat, "d/f") == b"new"
    assert node(flat, "d/f").mode == 0o100600


def test_a_whiteout_removes_what_is_below(flatten: Flatten) -> None:
    """`.wh.NAME` removes files and whole directories, and leaves no trace."""
    flat = flatten(layer("d/", "d/a", "d/b", "e/", "e/x"), layer("d/.wh.a", ".wh.e"))
    assert names(flat) == ["d/", "d/b"]


def test_a_whiteout_does_not_remove_what_its_own_layer_adds(flatten: Flatten) -> None:
    """Whiteouts apply to lower layers, in whatever order the tar has them."""
    flat = flatten(layer("d/", "d/a"), layer(("d/a", {"data": b"new"}), "d/.wh.a"))
    assert content(flat, "d/a") == b"new"


def test_an_opaque_directory_hides_what_is_below(flatten: Flatten) -> None:
    """`.wh..wh..opq` empties the directory, but for what the layer itself has in it."""
    flat = flatten(layer("d/", "d/a", "d/s/", "d/s/x"), layer("d/", "d/new", "d/.wh..wh..opq"))
    assert names(flat) == ["d/", "d/new"]


def test_a_file_replaces_a_directory_tree_and_the_other_way_round(flatten: Flatten) -> None:
    """What is not a directory on both sides is replaced whole."""
    flat = flatten(layer("d/", "d/a", "f"), layer("d", "f/", "f/x"))
    assert names(flat) == ["d", "f/", "f/x"]


def test_a_directory_on_a_directory_takes_the_attributes_and_keeps_the_children(flatten: Flatten) -> None:
    """An entry for the directory changes it; a mere file in it does not."""
    flat = flatten(layer(("d/", {"mode": 0o1777, "uid": 3}), "d/a"), layer("d/b"))
    assert (node(flat, "d/").mode, node(flat, "d/").uid) == (0o41777, 3)
    flat = flatten(layer(("d/", {"mode": 0o1777}), "d/a"), layer(("d/", {"mode": 0o700, "gid": 4})))
    assert (node(flat, "d/").mode, node(flat, "d/").gid) == (0o40700, 4)
    assert names(flat) == ["d/", "d/a"]


def test_hard_links_are_one_file(flatten: Flatten) -> None:
    """Within a layer and into a lower one; a later file under one name leaves the other alone."""
    flat = flatten(
        layer(("a", {"data": b"1"}), hard_link("b", "a")), layer(hard_link("c", "./a")), layer(("a", {"data": b"2"}))
    )
    assert node(flat, "b") is node(flat, "c")
    assert (content(flat, "a"), content(flat, "b")) == (b"2", b"1")


@pytest.mark.parametrize("target", ["missing", "d", "../a"])
def test_a_hard_link_to_nothing_is_refused(flatten: Flatten, target: str) -> None:
    """Nor to a directory, nor out of the image."""
    with pytest.raises(ImageFormatError):
        flatten(layer("a", "d/", hard_link("x", target)))


def test_modes_owners_times_links_and_devices_are_kept(flatten: Flatten) -> None:
    """Set-id and sticky bits, owners that do not fit octal fields, times, targets, device numbers, fifos."""
    flat = flatten(
        layer(
            ("su", {"mode": 0o104755, "uid": 1 << 22, "gid": 70000, "mtime": 1700000000}),
            symlink("l", "../../etc/passwd"),
            ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666}),
            ("disk", {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 1}),
            ("pipe", {"type": tarfile.FIFOTYPE}),
        )
    )
    su = node(flat, "su")
    assert (su.mode, su.uid, su.gid, su.mtime) == (0o104755, 1 << 22, 70000, 1700000000)
    assert (node(flat, "l").mode, node(flat, "l").target) == (0o120777, b"../../etc/passwd")
    assert (node(flat, "null").mode, node(flat, "null").rdev) == (0o20666, (1, 3))
    assert (node(flat, "disk").mode >> 12, node(flat, "pipe").mode >> 12) == (0o6, 0o1)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_targets_are_read(flatten: Flatten, format_: int) -> None:
    """GNU's long-name members and PAX records; PAX's fractions of a second are rounded down."""
    name, target = "d" * 120 + "/" + "é" * 90, "t" * 300
    flat = flatten(layer((name, {"data": b"x", "mtime": 5.9 if format_ == tarfile.PAX_FORMAT else 5}), format=format_))
    assert content(flat, name) == b"x"
    assert node(flat, name).mtime == 5
    assert node(flatten(layer(symlink("l", target), format=format_)), "l").target == target.encode()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/../evil"])
def test_a_name_that_leaves_the_root_is_refused(flatten: Flatten, name: str) -> None:
    """Path traversal is an error, not a file elsewhere."""
    with pytest.raises(ImageFormatError, match="leaves the image's root"):
        flatten(layer(name))


def test_links_on_the_way_stay_inside(flatten: Flatten) -> None:
    """A link to `/` or far up is followed as if the image's root were the machine's."""
    flat = flatten(
        layer(
            "real/", symlink("in", "real"), "in/a", symlink("up", "../../.."), "up/b", symlink("abs", "/real"), "abs/c"
        )
    )
    assert names(flat) == ["abs", "b", "in", "real/", "real/a", "real/c", "up"]


def test_links_in_a_circle_are_refused(flatten: Flatten) -> None:
    """Following links ends (MAXSYMLINKS)."""
    with pytest.raises(ImageFormatError, match="too many links"):
        flatten(layer(symlink("a", "b"), symlink("b", "a"), "a/x"))


def test_a_path_of_many_components_is_refused(flatten: Flatten) -> None:
    """Depth is bounded."""
    with pytest.raises(ImageFormatError):
        flatten(layer("d/" * 300))


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


def two_gzip_members(data: bytes) -> bytes:
    return gzip.compress(data[:600]) + gzip.compress(data[600:])


@pytest.mark.parametrize("compress", [bytes, gzip.compress, two_gzip_members, zstd])
def test_every_compression_gives_the_same_tree(flatten: Flatten, compress: Callable[[bytes], bytes]) -> None:
    """None, gzip, gzip in several members, zstd."""
    if compress is zstd and shutil.which("zstd") is None:
        pytest.skip("the program zstd is not here")
    flat = flatten(layer(("f", {"data": b"x" * 100000})), compress=compress)
    assert content(flat, "f") == b"x" * 100000


@pytest.mark.parametrize(
    "compress", [lambda data: gzip.compress(data)[:-9], lambda data: gzip.compress(data)[:20] + b"x" * 99]
)
def test_broken_compression_is_refused(flatten: Flatten, compress: Callable[[bytes], bytes]) -> None:
    """Cut off, or not deflate."""
    with pytest.raises(ImageFormatError, match="compression"):
        flatten(layer("f"), compress=compress)


def test_zstd_without_the_program_says_what_to_install(flatten: Flatten, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the program and has a hint."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MachineError, match="zstd") as caught:
        flatten(layer("f"), compress=lambda _: b"\x28\xb5\x2f\xfd....")
    assert caught.value.hint


def test_a_blob_that_was_changed_is_refused(make_layout: MakeLayout, tmp_path: Path) -> None:
    """The digest of manifest, configuration and layers is checked before they are used."""
    for index in range(3):
        layout = make_layout(layer("f", ("g", {"data": b"x"})))
        path = sorted((layout / "blobs" / "sha256").iterdir())[index]
        path.write_bytes(path.read_bytes()[:-1] + b" ")
        with pytest.raises(ImageFormatError, match="has the digest"):
            oci.flatten(oci.load_layout(layout), tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"manifests": []}', '{"manifests": [{"digest": "sha256:../../x"}]}', "[" * 99999]
)
def test_a_malformed_index_is_refused(tmp_path: Path, text: str) -> None:
    """Whatever index.json holds, the error is one of the format."""
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ImageFormatError):
        oci.load_layout(tmp_path)


def test_large_files_are_not_held_in_memory(flatten: Flatten) -> None:
    """A layer of 64 MiB flattens, and is read, in a few."""
    data = layer(("big", {"data": bytes(64 << 20)}))
    tracemalloc.start()
    flat = flatten(b"".join([data]), compress=lambda raw: gzip.compress(raw, 1))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    big = node(flat, "big").data
    assert big is not None
    assert sum(len(chunk) for chunk in flat.read(big)) == 64 << 20
    assert tracemalloc.get_traced_memory()[1] - before < 8 << 20
    tracemalloc.stop()


@given(st.binary(max_size=2000))
def test_any_bytes_are_members_or_an_error(data: bytes) -> None:
    """Nothing but ImageFormatError comes out of the tar reader."""
    with contextlib.suppress(ImageFormatError):
        list(tar.members(io.BytesIO(data), len(data)))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.text("abé/", min_size=1, max_size=160), st.binary(max_size=600), st.integers(0, 1 << 40))),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_that_tarfile_wrote(files: list[tuple[str, bytes, int]], format_: int) -> None:
    """Names, times and data of any archive that Python's own module writes."""
    data = layer(
        *[("x" + name, {"data": content, "mtime": time, "type": tarfile.REGTYPE}) for name, content, time in files],
        format=format_,
    )
    found = list(tar.members(io.BytesIO(data), len(data)))
    assert [(m.name.rstrip(b"/"), m.mtime) for m in found] == [
        (b"x" + name.rstrip("/").encode(), time) for name, _, time in files
    ]
    for member, (_, content, _) in zip(found, files, strict=True):
        assert data[member.offset : member.offset + member.size] == content


@given(st.binary(max_size=60))
def test_paths_have_no_special_components(path: bytes) -> None:
    """Whatever a layer calls its members, no component is empty, a dot or two."""
    with contextlib.suppress(ImageFormatError):
        assert not {b"", b".", b".."} & set(split(path))
