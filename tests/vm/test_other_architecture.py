"""An image for a machine that is not this one: built with the real arm64 kernel, and nothing of it is run."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alcove.enclave.paths import Paths
from alcove.guest import DEFAULT_CMDLINES, init_binary
from alcove.image.boot import prepare_boot

DOCKERFILE = """\
FROM scratch
COPY program /program
CMD ["/program"]
"""


@pytest.fixture(scope="module")
def eif(cli: Any) -> Path:
    """An aarch64 image; the kernel is fetched from Debian when it is needed for the first time."""
    context = cli.directory / "aarch64"
    context.mkdir()
    shutil.copy(init_binary("aarch64"), context / "program")
    (context / "Dockerfile").write_text(DOCKERFILE)
    target: Path = cli.directory / "aarch64.eif"
    done = cli(
        "nitro-cli", "build-enclave", "--arch", "aarch64", "--docker-dir", context,
        "--docker-uri", "aarch64:test", "--output-file", target,
    )  # fmt: skip
    if "is the mirror reachable?" in done.stderr:
        pytest.skip("Debian's arm64 kernel is not here and cannot be fetched")
    assert done.returncode == 0, done.stderr
    return target


def test_the_image_is_an_arm64_one_throughout(cli: Any, eif: Path, tmp_path: Path) -> None:
    """Header, kernel, command line, init and modules; the container image was asked for that platform."""
    files = prepare_boot(eif, tmp_path, architecture="aarch64")
    kernel = files.kernel.read_bytes()
    assert eif.read_bytes()[6:8] == b"\0\1"
    assert kernel[56:60] == b"ARM\x64"
    assert kernel[8:16] == (2 << 20).to_bytes(8, "little")
    assert files.cmdline == DEFAULT_CMDLINES["aarch64"]
    initrd = files.initrd.read_bytes()
    assert init_binary("aarch64").read_bytes() in initrd
    for module in (b"virtio_mmio.ko", b"vmw_vsock_virtio_transport.ko", b"nsm.ko"):
        assert module in initrd
    described = cli.json("nitro-cli", "describe-eif", "--eif-path", eif)
    assert described["Metadata"]["DockerInfo"]["Architecture"] == "arm64"
    assert described["Metadata"]["KernelVersion"].startswith("6.")


def test_this_machine_refuses_to_run_it(cli: Any, eif: Path) -> None:
    """E35: the image is for another architecture (eif.md §1.5)."""
    done = cli("nitro-cli", "run-enclave", "--eif-path", eif, "--cpu-count", 1, "--memory", 256)
    assert done.returncode == 35
    assert "aarch64" in done.stderr


def test_the_tree_says_what_it_is_made_of(eif: Path) -> None:
    """A manifest with Debian's version of the kernel, and digests that are those of the files."""
    root = Paths.from_environment().state / "kernel-aarch64"
    manifest = json.loads((root / "manifest.json").read_text())
    assert "linux-image-cloud-arm64" in manifest["packages"]
    assert set(manifest["sha256"]) == {manifest["kernel"], manifest["kernel_config"], *manifest["modules"]}
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest
