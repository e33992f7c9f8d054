"""`dir:ROOTFS`: a root file system as an image."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest
from tests.unit.image.storage import disk_lines, flat_lines

from alcove.errors import ImageFormatError, InputError
from alcove.image.sources.container import Flattened, silent
from alcove.image.sources.fetch import ContainerSource
from alcove.image.sources.limits import Limits
from alcove.image.sources.tree import walk

CONFIG = {"Cmd": ["/bin/app"], "Env": ["A=b"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small file system, and beside it the file that says what it runs."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "app").write_bytes(b"program")
    (root / "bin" / "app").chmod(0o4755)
    (root / "empty").touch()
    (root / "link").symlink_to("../outside")
    os.link(root / "bin" / "app", root / "also-app")
    os.mkfifo(root / "pipe")
    os.utime(root / "empty", ns=(0, 1_500_000_000_999_999_999))
    (root / "bin").chmod(0o2750)
    (tmp_path / "root.json").write_text(json.dumps(CONFIG))
    return root


def flatten(root: Path, said: list[str] | None = None, limits: Limits | None = None) -> Flattened:
    """The tree of a directory."""
    note = (lambda _: None) if said is None else said.append
    image = ContainerSource("aarch64", {}, note).fetch(f"dir:{root}", root.parent)
    return image.flatten(root.parent, limits or Limits(), silent)


def test_a_directory_is_taken_as_it_is(root: Path) -> None:
    """Types, modes, owners, times, contents, and which names are one file."""
    if os.geteuid() == 0:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(root / "empty", 1000, 65534)
    assert flat_lines(flatten(root)) == disk_lines(root)
    assert any(" = also-app" in line for line in flat_lines(flatten(root)))


def test_names_are_walked_in_the_order_of_their_bytes(root: Path) -> None:
    """As `docker export` does, whatever the locale and the file system's own order."""
    for name in ("b.txt", "B", "é", os.fsdecode(b"\xff"), "b/x", "b/a"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    names = [name for name, _ in walk(flatten(root).root) if name[:1] in b"Bb\xc3\xff" and not name.startswith(b"bin")]
    assert names == [b"B", b"b/", b"b/a", b"b/x", b"b.txt", "é".encode(), b"\xff"]


def test_the_file_beside_it_says_what_it_runs(root: Path) -> None:
    """An image's `config` object, or a whole configuration; the platform is the one that is asked for."""
    source = ContainerSource("aarch64", {}, print)
    image = source.fetch(f"dir:{root}/", root.parent)
    assert (image.settings, image.config["architecture"], image.diff_ids) == (CONFIG, "arm64", ())
    whole = {"architecture": "amd64", "os": "linux", "config": CONFIG, "created": "2026-01-01T00:00:00Z"}
    (root.parent / "root.json").write_text(json.dumps(whole))
    other = source.fetch(f"dir:{root}", root.parent)
    assert (other.config, other.settings) == (whole, CONFIG)
    assert image.digest != other.digest == source.fetch(f"dir:{root}", root.parent).digest


@pytest.mark.parametrize("text", [None, "", "[]", '{"Cmd": "\\ud800"}', '{"Cmd": NaN}'])
def test_without_a_command_it_is_no_image(root: Path, text: str | None) -> None:
    """The error names the file; the hint shows what to write."""
    beside = root.parent / "root.json"
    beside.unlink()
    if text is not None:
        beside.write_text(text)
    with pytest.raises(InputError, match=r"root\.json") as caught:
        flatten(root)
    if text is None:
        assert caught.value.code == "E48"
        assert '{"Cmd"' in str(caught.value.hint)


def test_what_is_no_directory_is_e48(root: Path) -> None:
    """Nor a file."""
    for path in (root / "missing", root / "empty"):
        with pytest.raises(InputError, match="not a directory") as caught:
            flatten(path)
        assert caught.value.code == "E48"


def test_sockets_are_left_out_and_told(root: Path) -> None:
    """No image has them."""
    said: list[str] = []
    here = Path.cwd()
    os.chdir(root)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("socket")
            names = [name for name, _ in walk(flatten(root, said).root)]
    finally:
        os.chdir(here)
    assert b"socket" not in names
    assert len(said) == 1
    assert "socket" in said[0]


def test_other_file_systems_stay_out() -> None:
    """What is mounted below, /proc above all, is not part of the image."""
    said: list[str] = []
    root = Path("/dev") if os.path.ismount("/dev/pts") else None
    if root is None or os.geteuid() != 0:
        pytest.skip("/dev/pts is not a mount, or cannot be read")
    from alcove.image.sources.directory import RootDirectory  # noqa: PLC0415  # without the file beside /dev

    flattened = RootDirectory(root, {}, said.append).flatten(root, Limits(), silent)
    names = [name for name, _ in walk(flattened.root)]
    assert b"pts/" in names
    assert not any(name.startswith(b"pts/") and name != b"pts/" for name in names)
    assert any("/dev/pts is another file system" in line for line in said)


def test_a_file_that_changes_meanwhile_is_an_error(root: Path) -> None:
    """A link in its place is not followed; a shorter file is not filled up."""
    flattened = flatten(root)
    data = {name: node.data for name, node in walk(flattened.root)}[b"also-app"]
    assert data is not None
    (root / "also-app").unlink()
    (root / "also-app").symlink_to("/etc/passwd")
    with pytest.raises(ImageFormatError, match="cannot be read"):
        list(flattened.read(data))
    (root / "also-app").unlink()
    (root / "also-app").write_bytes(b"pro")
    with pytest.raises(ImageFormatError, match="shorter"):
        list(flattened.read(data))


def descriptors() -> int:
    """Files that this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_many_files_do_not_use_up_descriptors(root: Path) -> None:
    """However many files are read, few are open."""
    for n in range(200):
        (root / f"file-{n:03}").write_bytes(b"x" * n)
    before = descriptors()
    flattened = flatten(root)
    for _, node in walk(flattened.root):
        list(flattened.read(node.data) if node.data else ())
    assert descriptors() - before <= 64
    del flattened
    assert descriptors() <= before + 1


def test_a_deep_or_endless_tree_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Depth and memory are bounded."""
    with pytest.raises(ImageFormatError, match="bytes of memory"):
        flatten(root, limits=Limits(tree=2000))
    monkeypatch.chdir(root)
    for _ in range(260):
        os.mkdir("d")  # noqa: PTH102
        os.chdir("d")
    with pytest.raises(ImageFormatError, match="too deep"):
        flatten(root)


def test_skopeo_s_own_directories_are_not_taken_for_a_file_system(tmp_path: Path) -> None:
    """`dir:` is also skopeo's word for an image in pieces; that is skopeo's to read."""
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    (pieces / "version").write_text("Directory Transport Version: 1.1\n")
    with pytest.raises(Exception, match="skopeo is missing"):
        ContainerSource("x86_64", {"PATH": "/nonexistent"}, print).fetch(f"dir:{pieces}", tmp_path)
