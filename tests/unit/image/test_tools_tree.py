"""The tools tree: what is asked for, what is kept, and that it is built once."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import signal
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from tests.unit.image.processes import alive, until

from alcove.errors import ImageFormatError, MachineError
from alcove.image.sources import debian
from alcove.image.sources.arm64_image import TEXT_OFFSET, enclave_image
from alcove.image.sources.debian import KEYRING, mmdebstrap_command
from alcove.image.sources.kernel_modules import decompress, dependencies, load_order
from alcove.image.sources.tools_tree import TOOLS, ToolsTree, ensure_kernel_tree, ensure_tools_tree, kernel_recipe

RELEASE = "6.12.0-cloud"
MODULES = f"usr/lib/modules/{RELEASE}"


def module(depends: str) -> bytes:
    """A module as far as anyone reads it here."""
    return lzma.compress(b"\x7fELF....\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0")


def arm64_kernel(text_offset: int = 0) -> bytes:
    """The header of an arm64 Image (booting.rst), and a little code."""
    return struct.pack("<2I3Q3Q4sI", 0xFA405A4D, 0, text_offset, 64, 0xA, 0, 0, 0, b"ARM\x64", 64) + b"code"


def packages(kernel: bytes = b"kernel") -> bytes:
    """A tar stream like mmdebstrap's, with the parts that matter and some that do not."""
    qemu = b"#!/bin/sh\n"
    loader = b'#!/bin/sh\necho "  libc.so.6 => $2/libc.so.6 (0x1)"\n'
    files = {
        "usr/bin/qemu-system-x86_64": qemu,
        "usr/bin/passwd": b"no",
        "usr/lib64/ld-linux-x86-64.so.2": loader,
        "usr/lib/x86_64-linux-gnu/libc.so.6": b"c",
        "usr/lib/x86_64-linux-gnu/libsystemd.so.0": b"s",
        f"boot/vmlinuz-{RELEASE}": kernel,
        f"boot/config-{RELEASE}": b"config",
        f"{MODULES}/modules.builtin": b"kernel/drivers/virtio/virtio_ring.ko\n",
        f"{MODULES}/kernel/drivers/virtio/virtio_mmio.ko.xz": module("virtio_ring"),
        f"{MODULES}/kernel/net/vmw_vsock/vsock.ko.xz": module(""),
        f"{MODULES}/kernel/net/vmw_vsock/hv_sock.ko.xz": module("vsock"),
        f"{MODULES}/kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko.xz": module("vsock"),
        f"{MODULES}/kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko.xz": module(
            "vmw_vsock_virtio_transport_common,vsock"
        ),
        f"{MODULES}/kernel/drivers/misc/nsm.ko.xz": module(""),
        "usr/share/qemu/pvh.bin": b"p",
        "usr/share/qemu/skiboot.lid": b"no",
        "alcove-packages": b"partial\nlibattr1_1%3a2.5.2-3_amd64.deb\nqemu-system-x86_1%3a11.1.3_amd64.deb\n",
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH whose mmdebstrap prints the packages, and counts its runs."""
    (tmp_path / "packages.tar").write_bytes(packages())
    script = tmp_path / "bin/mmdebstrap"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho run >>{tmp_path}/runs\nsleep 0.1\ncat {tmp_path}/packages.tar\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "packages.tar")
    return tmp_path


def quiet(_line: str) -> None:
    """Nobody watches."""


def test_only_what_an_enclave_needs_is_kept(mirror: Path) -> None:
    """QEMU with its libraries, firmware, the kernel and five modules; no program else, no library else."""
    tree = ensure_tools_tree(mirror / "state", quiet)
    kept = {str(path.relative_to(tree.root)) for path in tree.root.rglob("*") if path.is_file()}
    assert "usr/bin/qemu-system-x86_64" in kept
    assert "usr/lib/x86_64-linux-gnu/libc.so.6" in kept
    for gone in ("passwd", "libsystemd", "skiboot", "hv_sock", "alcove-packages"):
        assert not [name for name in kept if gone in name]


def test_modules_come_in_load_order(mirror: Path) -> None:
    """The transport, then vsock from the ground up, then the NSM; what the kernel has built in is no file."""
    tree = ensure_tools_tree(mirror / "state", quiet)
    assert [path.name.partition(".")[0] for path in tree.modules] == [
        "virtio_mmio",
        "vsock",
        "vmw_vsock_virtio_transport_common",
        "vmw_vsock_virtio_transport",
        "nsm",
    ]


def test_the_manifest_names_versions_and_digests(mirror: Path) -> None:
    """It says what the tree is made of, so that a measurement can be explained later."""
    tree = ensure_tools_tree(mirror / "state", quiet)
    assert tree.manifest["packages"] == {"libattr1": "1:2.5.2-3", "qemu-system-x86": "1:11.1.3"}
    assert tree.manifest["kernel_release"] == RELEASE
    assert len(tree.manifest["sha256"][f"boot/vmlinuz-{RELEASE}"]) == 64
    assert tree.kernel.read_bytes() == b"kernel"
    assert tree.kernel_config.read_bytes() == b"config"


def test_parallel_runs_build_once(mirror: Path) -> None:
    """The second waits for the lock and finds the tree."""
    threads = [threading.Thread(target=ensure_tools_tree, args=(mirror / "state", quiet)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (mirror / "runs").read_text() == "run\n"


def test_a_complete_tree_is_found_at_once(mirror: Path) -> None:
    """Nothing runs and nothing is said; an upgrade builds anew."""
    state = mirror / "state"
    ensure_tools_tree(state, quiet)
    said: list[str] = []
    ensure_tools_tree(state, said.append)
    assert said == []
    assert (mirror / "runs").read_text() == "run\n"
    ensure_tools_tree(state, said.append, upgrade=True)
    assert (mirror / "runs").read_text() == "run\n" * 2


def test_the_kernel_of_another_architecture_is_a_tree_of_its_own(mirror: Path) -> None:
    """No QEMU; an uncompressed Image with the platform's text offset; the same five modules in the same order."""
    (mirror / "packages.tar").write_bytes(packages(gzip.compress(arm64_kernel())))
    tree = ensure_kernel_tree(mirror / "state", "aarch64", quiet)
    assert tree.root == mirror / "state" / "kernel-aarch64"
    assert tree.kernel.name == f"Image-{RELEASE}"
    assert tree.kernel.read_bytes() == arm64_kernel(TEXT_OFFSET)
    assert len(tree.modules) == 5
    assert {path.parts[len(tree.root.parts)] for path in tree.root.rglob("*") if path.is_file()} == {
        "boot", "manifest.json", "usr",
    }  # fmt: skip
    assert not list(tree.root.rglob("qemu*"))
    assert not list(tree.root.rglob("vmlinuz*"))
    assert "qemu" not in tree.manifest
    assert f"boot/Image-{RELEASE}" in tree.manifest["sha256"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ\0\0zimg" + bytes(64),
        arm64_kernel()[:40],
        bytes(64),
        gzip.compress(arm64_kernel())[:-9],
        b"\x1f\x8b" + bytes(20),
        gzip.compress(b"text"),
    ],
)
def test_what_is_no_arm64_image_is_refused(data: bytes) -> None:
    """Cut, broken, compressed in a way that only firmware undoes, or something else."""
    with pytest.raises(ImageFormatError, match="arm64 kernel"):
        enclave_image(data)


def test_an_interrupted_download_leaves_nothing_running(mirror: Path) -> None:
    """Ctrl-C ends mmdebstrap, and takes the half-made tree along."""
    program = mirror / "bin/mmdebstrap"
    program.write_text(f"#!/bin/sh\necho $$ >{mirror}/pid\nexec sleep 60\n")
    code = (
        # in the background it is ignored
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pathlib import Path; from alcove.image.sources import debian, tools_tree;"
        "debian.KEYRING = Path(sys.argv[1]); tools_tree.ensure_tools_tree(Path(sys.argv[2]), print)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, mirror / "packages.tar", mirror / "state"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: (mirror / "pid").exists() and bool((mirror / "pid").read_text().strip()))
    process.send_signal(signal.SIGINT)
    process.wait(60)
    until(lambda: not alive(int((mirror / "pid").read_text())))
    assert {path.name for path in (mirror / "state").iterdir()} == {"tools.lock"}


@pytest.mark.parametrize("script", ["echo 'E: no route to host' >&2; exit 1", "head -c 2000 {tar}; exit 0"])
def test_a_failed_download_leaves_nothing(mirror: Path, script: str) -> None:
    """Neither a failing mmdebstrap nor a cut stream makes a tree; the error has mmdebstrap's words."""
    program = mirror / "bin/mmdebstrap"
    program.write_text("#!/bin/sh\n" + script.format(tar=mirror / "packages.tar"))
    with pytest.raises(MachineError, match="mmdebstrap failed") as caught:
        ensure_tools_tree(mirror / "state", quiet)
    assert "no route" in caught.value.message or "status 0" in caught.value.message
    assert {path.name for path in (mirror / "state").iterdir()} == {"tools.lock"}


def test_a_tree_of_another_format_is_no_tree(tmp_path: Path) -> None:
    """It is built anew instead of being misread."""
    assert ToolsTree.load(tmp_path) is None
    for text in ("", "[]", json.dumps({"format": 0})):
        (tmp_path / "manifest.json").write_text(text)
        assert ToolsTree.load(tmp_path) is None


def test_signatures_are_checked_and_no_script_runs() -> None:
    """The command unpacks only, trusts one keyring and never turns apt's checks off."""
    for recipe in (TOOLS, kernel_recipe("aarch64")):
        command = mmdebstrap_command(recipe, None, keyring=KEYRING, root=True)
        assert "--variant=extract" in command
        assert not [word for word in command if "nsecure" in word or "trusted=" in word]
        assert "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg" in command


def test_a_mirror_is_the_users_choice() -> None:
    """None leaves it to mmdebstrap, which knows Debian's own."""
    assert mmdebstrap_command(TOOLS, None, keyring=KEYRING, root=True)[-2:] == ["trixie", "-"]
    assert mmdebstrap_command(TOOLS, "http://m/debian", keyring=KEYRING, root=True)[-1] == "http://m/debian"


def test_dependencies_are_read_from_the_module() -> None:
    """depends= of .modinfo, with dashes as underscores; none is none."""
    assert dependencies(decompress(module("a-b,c"))) == ("a_b", "c")
    assert dependencies(decompress(module(""))) == ()


def test_a_broken_module_is_refused() -> None:
    """Broken compression, a cut file, and what is no ELF file."""
    good = module("")
    for bad in (b"", b"text", good[:-8], good[:20] + b"XXXX" + good[24:], lzma.compress(b"text")):
        with pytest.raises(ImageFormatError, match="kernel module"):
            decompress(bad)


def test_a_circle_of_modules_is_refused() -> None:
    """It would be an endless search."""
    with pytest.raises(ImageFormatError, match="a needs b needs a"):
        load_order(["a"], {"a": ["b"], "b": ["a"]}.__getitem__)
