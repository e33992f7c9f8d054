"""What is too much of a container image, and how a user allows it."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.image.tarballs import extended, hard_link, layer, record

from alcove.errors import ImageFormatError, MachineError, UsageError
from alcove.image.sources import layers, oci, tar
from alcove.image.sources.container import silent
from alcove.image.sources.limits import MAX_LAYER, MAX_TREE, Limits, parse_size

MakeLayout = Callable[..., Path]
MIB = 1 << 20


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_a_bomb_stops_at_the_limit(make_layout: MakeLayout, tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """At the limit and not after it, and the hint says how to raise it; at the size itself it is read."""
    if compress is zstd and shutil.which("zstd") is None:
        pytest.skip("zstd is missing")
    data = layer(("zeros", {"data": bytes(20 * MIB)}))
    image = oci.load_layout(make_layout(data, compress=compress))
    spool = tmp_path / "spool"
    spool.mkdir()
    with pytest.raises(ImageFormatError, match=f"larger than {3 * MIB} bytes") as caught:
        oci.flatten(image, spool, Limits(layer=3 * MIB))
    assert "ALCOVE_MAX_LAYER" in str(caught.value.hint)
    assert sum(path.stat().st_size for path in spool.iterdir()) <= 3 * MIB
    oci.flatten(image, spool, Limits(layer=len(data)))


def test_the_environment_and_the_flag_set_the_limits() -> None:
    """The flag goes before the variable; without either there are defaults."""
    assert Limits.from_environment({}) == Limits(MAX_LAYER, MAX_TREE)
    variables = {"ALCOVE_MAX_LAYER": "2G", "ALCOVE_MAX_TREE": "300m"}
    assert Limits.from_environment(variables) == Limits(2 << 30, 300 * MIB)
    assert Limits.from_environment(variables, 5).layer == 5


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "12X", "G", "9" * 40, "１"])
def test_what_is_no_size_is_e03(text: str) -> None:
    """With the name of the variable."""
    with pytest.raises(UsageError, match="ALCOVE_MAX_LAYER") as caught:
        parse_size("ALCOVE_MAX_LAYER", text)
    assert caught.value.code == "E03"


@pytest.mark.parametrize(
    "data",
    [
        layer(*(f"file-{n}" for n in range(100))),
        layer(*(f".wh.file-{n}" for n in range(100))),
        layer("a", *(hard_link(f"link-{n}", "a") for n in range(100))),
        layer("/".join(f"directory-{n}" for n in range(100))),
        layer(*("same" for _ in range(100))),
    ],
)
def test_a_tree_stops_at_the_limit(make_layout: MakeLayout, tmp_path: Path, data: bytes) -> None:
    """Files, whiteouts, links, directories that are only implied, and one name again and again."""
    image = oci.load_layout(make_layout(data))
    with pytest.raises(ImageFormatError, match="more than 20000 bytes of memory") as caught:
        oci.flatten(image, tmp_path, Limits(tree=20_000))
    assert "ALCOVE_MAX_TREE" in str(caught.value.hint)
    oci.flatten(image, tmp_path, Limits(tree=100_000))


def test_records_that_nobody_reads_are_not_kept() -> None:
    """Global PAX records hold to the end of the archive; a million of them must not fill the memory."""
    noise = b"".join(extended(b"g", record(f"comment.{n}", "x" * 90_000)) for n in range(3))
    archive = noise + extended(b"g", record("uid", "7")) + layer("a")
    (member,) = tar.members(io.BytesIO(archive), len(archive))
    assert (member.name, member.uid) == (b"a", 7)
    assert not set(tar._records(record("comment", "x") + record("SCHILY.xattr.user.a", "b"), 0))


def test_names_have_the_length_that_linux_allows(make_layout: MakeLayout, tmp_path: Path) -> None:
    """255 bytes for a component."""
    flat = oci.flatten(oci.load_layout(make_layout(layer("n" * 255))), tmp_path)
    assert list(flat.root.children) == [b"n" * 255]
    with pytest.raises(ImageFormatError, match="longer than 255"):
        oci.flatten(oci.load_layout(make_layout(layer("n" * 256, format=tarfile.GNU_FORMAT))), tmp_path)


def test_progress_counts_the_bytes_of_the_blobs(make_layout: MakeLayout, tmp_path: Path) -> None:
    """Never backwards, from one stage, to the sum of what the blobs hold."""
    parts = [layer((f"f{n}", {"data": os.urandom(3 * MIB)})) for n in range(3)]
    seen: list[tuple[str, int, int | None]] = []
    image = oci.load_layout(make_layout(*parts, compress=gzip.compress))
    oci.flatten(image, tmp_path, on_bytes=lambda *progress: seen.append(progress))
    total = sum(part.path.stat().st_size for part in image.layers)
    assert {(stage, whole) for stage, _, whole in seen} == {(layers.STAGE, total)}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == total


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_the_machines_fault(make_layout: MakeLayout, tmp_path: Path) -> None:
    """The error says where, and how to choose another place."""
    image = oci.load_layout(make_layout(layer("a"), compress=gzip.compress))
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "layer-0.tar").symlink_to("/dev/full")
    with pytest.raises(MachineError, match=r"No space left|Permission denied") as caught:
        layers.use_layers(image.layers, spool, Limits(), silent, lambda *_: None)
    assert "TMPDIR" in str(caught.value.hint)


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_changed_blob_is_told_before_its_compression(
    make_layout: MakeLayout, tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    """A compressed blob is read once: what went wrong is still its digest, wherever it was changed."""
    if compress is zstd and shutil.which("zstd") is None:
        pytest.skip("zstd is missing")
    data = layer(("f", {"data": os.urandom(MIB)}))
    for at in (0.1, 0.5, 0.99):
        image = oci.load_layout(make_layout(data, compress=compress))
        path = image.layers[0].path
        blob = bytearray(path.read_bytes())
        blob[int(len(blob) * at)] ^= 0x40
        path.write_bytes(blob)
        with pytest.raises(ImageFormatError, match="has the digest"):
            oci.flatten(image, tmp_path)


def test_a_blob_that_unpacks_to_something_else_is_refused(make_layout: MakeLayout, tmp_path: Path) -> None:
    """The diff_id of the configuration is checked too."""
    layout = make_layout(layer("a"), compress=lambda _: gzip.compress(layer("b")))
    with pytest.raises(ImageFormatError, match="has the digest"):
        oci.flatten(oci.load_layout(layout), tmp_path)
