"""OCI layouts with several images, and links across layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.image.tarballs import hard_link, layer, summed, symlink

from alcove.errors import ImageFormatError, InputError
from alcove.image.sources import oci, references
from alcove.image.sources.fetch import ContainerSource
from alcove.image.sources.tree import find, new_directory, walk

MakeLayout = Callable[..., Path]
NAME = "org.opencontainers.image.ref.name"
INDEX = "application/vnd.oci.image.index.v1+json"


class Layout:
    """An OCI layout without layers, image by image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, item: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Put an object in; its descriptor."""
        data = json.dumps(item).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs" / "sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)} | more

    def image(self, architecture: str, label: str = "", **more: Any) -> dict[str, Any]:
        """An image for an architecture; its descriptor, without a platform."""
        config = {"architecture": architecture, "config": {"Cmd": [label]}, "rootfs": {"diff_ids": []}}
        return self.blob({"config": self.blob(config), "layers": []}, **more)

    def index(self, *manifests: dict[str, Any], **more: Any) -> dict[str, Any]:
        """An index; its descriptor."""
        return self.blob({"mediaType": INDEX, "manifests": list(manifests)}, **more)

    def write(self, *manifests: dict[str, Any]) -> Path:
        """Finish it."""
        (self.path / "index.json").write_text(json.dumps({"manifests": list(manifests)}))
        return self.path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty one."""
    return Layout(tmp_path / "layout")


def platform(architecture: str, variant: str | None = None) -> dict[str, Any]:
    return {"platform": {"os": "linux", "architecture": architecture} | ({"variant": variant} if variant else {})}


def tagged(name: str) -> dict[str, Any]:
    return {"annotations": {NAME: name}}


def command(image: oci.OciImage) -> str:
    return str(image.settings["Cmd"][0])


def test_a_tag_names_an_image(layout: Layout) -> None:
    """Of several; without one the error lists them."""
    path = layout.write(*(layout.image("amd64", name, **tagged(name)) for name in ("v1", "v2")))
    assert [command(oci.load_layout(path, tag)) for tag in ("v1", "v2")] == ["v1", "v2"]
    with pytest.raises(ImageFormatError, match="holds 2 images") as caught:
        oci.load_layout(path)
    assert "v1, v2" in str(caught.value.hint)
    with pytest.raises(ImageFormatError, match="'v3'") as caught:
        oci.load_layout(path, "v3")
    assert "v1, v2" in str(caught.value.hint)


def test_one_image_with_two_tags_is_one(layout: Layout) -> None:
    """It needs no tag, and has both."""
    image = layout.image("amd64", "x")
    path = layout.write(image | tagged("v1"), image | tagged("latest"))
    assert {command(oci.load_layout(path, tag)) for tag in (None, "v1", "latest")} == {"x"}


def test_the_architecture_picks_from_an_index(layout: Layout) -> None:
    """At the top, or in an index within; attestations are passed over, and the plain variant goes first."""
    attestation = layout.image("unknown", "attestation", platform={"os": "unknown", "architecture": "unknown"})
    images = (
        attestation,
        layout.image("arm64", "arm v9", **platform("arm64", "v9")),
        layout.image("arm64", "arm", **platform("arm64", "v8")),
        layout.image("amd64", "intel v3", **platform("amd64", "v3")),
        layout.image("amd64", "intel", **platform("amd64")),
    )
    nested = layout.index(*images, **tagged("v1"))
    for path in (layout.write(*images), layout.write(nested), layout.write(layout.index(nested))):
        assert command(oci.load_layout(path, architecture="aarch64")) == "arm"
        assert command(oci.load_layout(path, architecture="x86_64")) == "intel"
    assert command(oci.load_layout(layout.write(nested), "v1", "aarch64")) == "arm"


def test_an_architecture_that_is_not_there_is_told(layout: Layout) -> None:
    """With those that are."""
    path = layout.write(layout.image("s390x", **platform("s390x")), layout.image("arm", **platform("arm", "v7")))
    with pytest.raises(ImageFormatError, match="not for linux/amd64") as caught:
        oci.load_layout(path, architecture="x86_64")
    assert "linux/arm, linux/s390x" in str(caught.value.hint)


def test_indexes_within_each_other_end(layout: Layout) -> None:
    """After a few."""
    descriptor = layout.image("amd64")
    for _ in range(6):
        descriptor = layout.index(descriptor)
    with pytest.raises(ImageFormatError, match="within each other"):
        oci.load_layout(layout.write(descriptor))


@pytest.mark.parametrize(
    "text",
    [
        '{"manifests": [{"digest": "sha512:' + "0" * 64 + '"}]}',
        '{"manifests": [{"digest": "sha256:' + "0" * 128 + '"}]}',
        '{"manifests": [{"digest": 1, "annotations": [], "platform": 7}, {"digest": null, "platform": []}]}',
        '{"manifests": [], "x": "\\udead"}',
        '{"manifests": [], "x": Infinity}',
        '{"manifests": {"digest": "sha256:0"}}',
        '{"manifests": [1]}',
    ],
)
def test_an_index_of_nonsense_is_refused(tmp_path: Path, text: str) -> None:
    """By the one error there is for it."""
    (tmp_path / "index.json").write_text(text)
    for tag, architecture in ((None, None), ("v1", "x86_64")):
        with pytest.raises(ImageFormatError):
            oci.load_layout(tmp_path, tag, architecture)


def test_directories_and_tags_may_hold_colons(layout: Layout) -> None:
    """As much as there is a layout for is the directory."""
    path = layout.write(layout.image("amd64", "x", **tagged("registry:5000/app:v1")))
    other = path.rename(path.with_name("a:b"))
    source = ContainerSource("x86_64", {}, print)
    for uri in (f"oci:{other}", f"oci:{other}:registry:5000/app:v1"):
        image = source.fetch(uri, path)
        assert isinstance(image, oci.OciImage)
        assert command(image) == "x"
    with pytest.raises(InputError, match="not an OCI image layout") as caught:
        source.fetch(f"oci:{path}", path)
    assert caught.value.code == "E50"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.8.7", True),
        ("[::1]:5000", True),
        ("docker.io", False),
        ("10.0.0.1:5000", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com:5000", False),
    ],
)
def test_only_this_machine_may_do_without_tls(host: str, loopback: bool) -> None:
    """Where Docker allows it too."""
    assert references.registry(f"{host}/app:v1") == host
    assert references.is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("name", "host", "stored"),
    [
        ("app:v1", "docker.io", ["localhost/app:v1", "app:v1"]),
        ("team/app:v1", "docker.io", ["localhost/team/app:v1", "team/app:v1"]),
        ("host:5000/app:v1", "host:5000", ["host:5000/app:v1"]),
        ("localhost/app:v1", "localhost", ["localhost/app:v1"]),
        ("docker.io/app:v1", "docker.io", ["docker.io/app:v1"]),
    ],
)
def test_references_have_a_registry(name: str, host: str, stored: list[str]) -> None:
    """Docker Hub, when the part before the first slash is no host; what was built here has the host `localhost`."""
    assert references.registry(name) == host
    assert list(references.stored_names(name)) == stored


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("host:5000/app:v1@sha256:00", "host:5000/app@sha256:00"),
        ("app@sha256:00", "app@sha256:00"),
        ("host:5000/app:v1", "host:5000/app:v1"),
    ],
)
def test_a_digest_makes_the_tag_needless(name: str, without: str) -> None:
    """Docker takes both, skopeo one of them."""
    assert references.without_shadowed_tag(name) == without


def flat(make_layout: MakeLayout, directory: Path, *layers: bytes) -> dict[str, Any]:
    """Nodes by name."""
    flattened = oci.flatten(oci.load_layout(make_layout(*layers)), directory)
    return {name.decode(): node for name, node in walk(flattened.root)}


LOWER = layer("usr/", "usr/bin/", ("usr/bin/sh", {"data": b"sh"}), symlink("bin", "usr/bin"), symlink("loop", "loop"))


@pytest.mark.parametrize("target", ["usr/bin/sh", "bin/sh", "/bin/sh", "bin/../bin/./sh", "usr/../bin/sh"])
def test_a_hard_link_finds_its_file_through_links_and_layers(
    make_layout: MakeLayout, tmp_path: Path, target: str
) -> None:
    """A target is looked for as the kernel would: in what the layers are so far, links on the way followed."""
    for layers in ((LOWER, layer(hard_link("x", target))), (LOWER, layer("usr/", "usr/lib/", hard_link("x", target)))):
        nodes = flat(make_layout, tmp_path, *layers)
        assert nodes["x"] is nodes["usr/bin/sh"]


@pytest.mark.parametrize(
    "upper",
    [
        layer("usr/bin/.wh.sh", hard_link("x", "bin/sh")),
        layer(".wh.usr", hard_link("x", "bin/sh")),
        layer("usr/", "usr/bin/", "usr/bin/.wh..wh..opq", hard_link("x", "usr/bin/sh")),
        layer(("bin", {"data": b"no directory"}), hard_link("x", "bin/sh")),
        layer(hard_link("x", "loop/sh")),
        layer(hard_link("x", "bin/sh/more")),
        layer(hard_link("x", "bin/..")),
    ],
)
def test_a_hard_link_to_what_is_gone_is_refused(make_layout: MakeLayout, tmp_path: Path, upper: bytes) -> None:
    """Whited out before it, hidden, replaced, or never there."""
    with pytest.raises(ImageFormatError, match="is a hard link to"):
        flat(make_layout, tmp_path, LOWER, upper)


def test_a_hard_link_outlives_its_target(make_layout: MakeLayout, tmp_path: Path) -> None:
    """A whiteout after the link, in the same layer or a later one, takes the one name only."""
    for uppers in (
        (layer(hard_link("x", "usr/bin/sh"), "usr/bin/.wh.sh"),),
        (layer(hard_link("x", "usr/bin/sh")), layer(".wh.usr")),
    ):
        nodes = flat(make_layout, tmp_path, LOWER, *uppers)
        assert "usr/bin/sh" not in nodes
        assert nodes["x"].data.size == 2


def test_a_chain_of_links_is_one_file(make_layout: MakeLayout, tmp_path: Path) -> None:
    """Link to link to link, over layers; links to symbolic links too."""
    nodes = flat(
        make_layout,
        tmp_path,
        layer(("a", {"data": b"1"}), hard_link("b", "a"), symlink("s", "a"), hard_link("t", "s")),
        layer(hard_link("c", "b")),
        layer(hard_link("d", "c"), ".wh.b"),
    )
    assert nodes["a"] is nodes["c"] is nodes["d"]
    assert nodes["s"] is nodes["t"]
    assert set(nodes) == {"a", "c", "d", "s", "t"}


def test_a_links_attributes_are_the_files(make_layout: MakeLayout, tmp_path: Path) -> None:
    """Docker's untar gives the file what the link's own header says."""
    link = ("b", {"type": b"1", "linkname": "a", "mode": 0o600, "uid": 5, "gid": 6, "mtime": 7})
    node = flat(make_layout, tmp_path, layer(("a", {"data": b"1", "mode": 0o4755}), link))["a"]
    assert (node.mode, node.uid, node.gid, node.mtime) == (0o100600, 5, 6, 7)


def test_nothing_is_found_in_empty_trees() -> None:
    """The root is its own parent."""
    lower, upper = new_directory(), new_directory()
    assert find(lower, upper, (b"a", b"b")) is None
    assert find(lower, upper, ()) is upper
    assert find(lower, upper, (b"..",)) is upper


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_layer_flattens_or_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes in any header, checksum put right: a tree, or ImageFormatError."""
    items = [
        "d/",
        ("d/f", {"data": b"x" * 700}),
        hard_link("h", "d/f"),
        symlink("s", "../d"),
        "s/y",
        "d/.wh.z",
        "n" * 90,
    ]
    archive = bytearray(layer(*items))
    headers = [at for at in range(0, len(archive), 512) if archive[at + 257 : at + 262] == b"ustar"]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(headers))
        field = data.draw(st.sampled_from([0, 100, 108, 116, 124, 125, 135, 136, 156, 157, 345, 386, 482, 483]))
        value = data.draw(st.binary(min_size=1, max_size=24))
        archive[at + field : at + field + len(value)] = value
        archive[at : at + 512] = summed(bytes(archive[at : at + 512]))
    directory = tmp_path_factory.mktemp("damaged")
    (directory / "layer").write_bytes(archive)
    digest = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    image = oci.OciImage("", {}, (oci.Layer(digest, directory / "layer", digest),))
    try:
        flattened = oci.flatten(image, directory)
        for _, node in walk(flattened.root):
            for _ in flattened.read(node.data) if node.data and node.data.size < 1 << 20 else ():
                pass
    except ImageFormatError:
        pass


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["d/", "d/a", symlink("d", "e"), "d/b"], {"d", "e/", "e/b"}),
        (["e/", symlink("d", "e"), "d/a", "d/", "d/b"], {"d/", "d/b", "e/", "e/a"}),
        (["d/", "d/s/", "d/s/a", ("d", {"data": b"x"}), "d/s/b"], {"d/", "d/s/", "d/s/b"}),
        (["e/", symlink("d", "e"), "d/a", symlink("d", "f"), "d/b"], {"d", "e/", "e/a", "f/", "f/b"}),
    ],
)
def test_a_directory_that_is_replaced_is_not_remembered(
    make_layout: MakeLayout, tmp_path: Path, items: list[Any], expected: set[str]
) -> None:
    """What comes after goes where the path leads by then."""
    assert set(flat(make_layout, tmp_path, layer(*items))) == expected
