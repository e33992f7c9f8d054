"""build-enclave from a Dockerfile to a file, with the real buildah and skopeo."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alcove.errors import AlcoveError, ImageFormatError, MachineError, UsageError
from alcove.image import build
from alcove.image.blobs import Blobs
from alcove.image.boot import prepare_boot
from alcove.image.build import BuildRequest, build_enclave
from alcove.image.describe import describe_eif
from alcove.image.metadata import default_image_name, kernel_identity, parse_custom, parse_metadata
from alcove.image.signing import Signer
from alcove.image.sources.programs import failure_reason
from alcove.image.sources.references import with_tag

MakeLayout = Callable[..., Path]
EXAMPLE = Path(__file__).parents[3] / "examples" / "hello"
THEN = "2026-08-13T13:50:21.123456789+00:00"
I8042 = "i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd"
CONFIG = "#\n#\n# Linux/x86_64 4.14.256-209.484.amzn2.x86_64 Kernel Configuration\n"

needs_buildah = pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed")
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """Boot files as AWS lays them out, with made-up content."""
    directory = tmp_path / "blobs"
    directory.mkdir()
    for name in ("bzImage", "init", "nsm.ko"):
        (directory / name).write_bytes(name.encode())
    (directory / "cmdline").write_text(" console=ttyS0\n")
    (directory / "bzImage.config").write_text(CONFIG)
    return Blobs.from_directory(directory)


@pytest.fixture
def request_for(blobs: Blobs, tmp_path: Path) -> Callable[..., BuildRequest]:
    """Makes a request whose temporary files go to a directory of their own."""
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()

    def make(uri: str, **fields: Any) -> BuildRequest:
        defaults: dict[str, Any] = {"output_file": out / "app.eif", "blobs": blobs, "work_dir": work}
        return BuildRequest(docker_uri=uri, **(defaults | fields))

    return make


@pytest.fixture
def layout(make_layout: MakeLayout) -> str:
    """Name of an image that holds one file and a command."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("app"))
    return f"oci:{make_layout(out.getvalue(), config={'Cmd': ['/app'], 'Env': ['A=b']})}"


@pytest.fixture
def image_name() -> Iterator[str]:
    """A name in buildah's store, freed afterwards."""
    name = f"alcove-test-{os.getpid()}"
    yield name
    subprocess.run(["buildah", "--storage-driver", "vfs", "rmi", name], capture_output=True, check=False)


def silent(_: str) -> None:
    """Progress that nobody reads."""


def example(directory: Path, mtime: int) -> Path:
    """A copy of the hello example in which every file has that time."""
    shutil.copytree(EXAMPLE, directory)
    (directory / "busybox").write_bytes(b"a program")
    for path in directory.iterdir():
        os.utime(path, (mtime, mtime))
    return directory


@needs_buildah
def test_the_same_context_gives_the_same_measurements(
    request_for: Callable[..., BuildRequest], tmp_path: Path, image_name: str
) -> None:
    """Two builds of the example, from directories with other names and times, have all PCRs in common."""
    first, second = (
        build_enclave(request_for(image_name, docker_dir=example(tmp_path / name, time)), silent)
        for name, time in (("a", 1), ("b", 1700000000))
    )
    assert first == second
    described = describe_eif(tmp_path / "out" / "app.eif")
    assert described["Measurements"] == first.to_json()
    assert described["CheckCRC"]
    assert (described["ImageName"], described["Metadata"]["KernelVersion"]) == (image_name, "4.14.256")
    again = build_enclave(request_for(image_name), silent)  # from buildah's store, by name
    assert again == first


@needs_buildah
def test_a_dockerfile_that_does_not_build_is_e49(
    request_for: Callable[..., BuildRequest], tmp_path: Path, image_name: str
) -> None:
    """The error has buildah's last line; nothing is left behind."""
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\nCOPY missing /\n")
    with pytest.raises(MachineError, match="missing") as caught:
        build_enclave(request_for(image_name, docker_dir=tmp_path / "context"), silent)
    assert caught.value.code == "E49"
    assert "\n" not in caught.value.message
    assert not list((tmp_path / "work").iterdir())
    assert not list((tmp_path / "out").iterdir())


@needs_skopeo
def test_an_image_that_is_not_there_is_e50(request_for: Callable[..., BuildRequest], tmp_path: Path) -> None:
    """The reason is skopeo's sentence without its time stamp."""
    with pytest.raises(MachineError, match="could not be fetched") as caught:
        build_enclave(request_for(f"docker-archive:{tmp_path}/missing.tar"), silent)
    assert caught.value.code == "E50"
    assert "level=" not in caught.value.message


def test_a_missing_program_is_named(request_for: Callable[..., BuildRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without skopeo the error says what to install."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MachineError, match="skopeo is missing") as caught:
        build_enclave(request_for("docker-archive:app.tar"), silent)
    assert "install" in str(caught.value.hint)


@needs_skopeo
def test_a_built_image_boots(
    request_for: Callable[..., BuildRequest], layout: str, tmp_path: Path, signer: Signer
) -> None:
    """Kernel, command line and both ramdisks come out of the image as they went in; a signed one has PCR8."""
    measured = build_enclave(request_for(layout, name="n", version="v", signer=None, build_time=THEN), silent)
    files = prepare_boot(tmp_path / "out" / "app.eif", tmp_path)
    assert files.kernel.read_bytes() == b"bzImage"
    assert files.cmdline == "console=ttyS0"
    assert (files.image_name, files.image_version, files.metadata["BuildTime"]) == ("n", "v", THEN)
    assert files.measurements == measured
    initrd = files.initrd.read_bytes()
    assert initrd.count(b"TRAILER!!!") == 2
    assert b"/app\n" in initrd
    signed = build_enclave(request_for(layout, signer=signer), silent)
    assert (signed.pcr0, signed.pcr8) == (measured.pcr0, files.measurements.pcr8 or signed.pcr8)
    assert describe_eif(tmp_path / "out" / "app.eif")["SignatureCheck"]


@needs_skopeo
def test_metadata_is_written_in_order_and_shown_flat(
    request_for: Callable[..., BuildRequest], layout: str, tmp_path: Path
) -> None:
    """CustomMetadata's keys stand beside the build's own in describe-eif."""
    (tmp_path / "custom.json").write_text('{"Team": "blue"}')
    build_enclave(request_for(layout, metadata=tmp_path / "custom.json"), silent)
    metadata = describe_eif(tmp_path / "out" / "app.eif")["Metadata"]
    assert list(metadata)[:6] == [
        *("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion"),
        "DockerInfo",
    ]
    assert metadata["Team"] == "blue"
    assert metadata["DockerInfo"]["Config"]["Env"] == ["A=b"]


@needs_skopeo
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_nothing(
    request_for: Callable[..., BuildRequest],
    layout: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    """Neither temporary files nor a half-written image; an older image stays."""
    (tmp_path / "out" / "app.eif").write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise error

    monkeypatch.setattr(build, "application_entries", interrupt)
    with pytest.raises(error):
        build_enclave(request_for(layout), silent)
    assert not list((tmp_path / "work").iterdir())
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"old"]


@needs_skopeo
@pytest.mark.parametrize(
    ("config", "arch", "message"),
    [({}, "x86_64", "unsupported entry point"), ({"Cmd": ["/app"]}, "aarch64", "for amd64|no image found|arch")],
)
def test_an_image_that_cannot_be_an_enclave_fails_the_build(
    request_for: Callable[..., BuildRequest], make_layout: MakeLayout, config: dict[str, Any], arch: str, message: str
) -> None:
    """No command, or another architecture: E48."""
    with pytest.raises(AlcoveError, match=message) as caught:
        build_enclave(request_for(f"oci:{make_layout(config=config)}", arch=arch), silent)
    assert caught.value.code in {"E48", "E50"}


@pytest.mark.parametrize("output", ["/nonexistent/app.eif", "/dev/null", "/"])
def test_an_output_that_cannot_be_written_fails_before_the_work(
    request_for: Callable[..., BuildRequest], output: str
) -> None:
    """E19, at once: in a missing directory, for a device and for a directory."""
    said: list[str] = []
    with pytest.raises(UsageError, match="cannot write") as caught:
        build_enclave(request_for("x", output_file=Path(output)), said.append)
    assert (caught.value.code, said) == ("E19", [])


def test_an_output_that_is_a_symlink_stays_one(
    request_for: Callable[..., BuildRequest], layout: str, tmp_path: Path
) -> None:
    """The image goes where the link leads, whether something is there or not, and nothing lies beside either."""
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "out" / "app.eif", tmp_path / "elsewhere" / "real.eif"
    link.symlink_to("../elsewhere/real.eif")
    for _ in range(2):
        build_enclave(request_for(layout), silent)
        assert describe_eif(target)["CheckCRC"]
        assert link.is_symlink()
        assert [path.name for path in (*link.parent.iterdir(), *target.parent.iterdir())] == ["app.eif", "real.eif"]


@pytest.mark.parametrize(
    ("kernel", "cmdline", "digest"),
    [
        (
            "bzImage",
            f"reboot=k panic=30 pci=off nomodules console=ttyS0 {I8042} random.trust_cpu=on",
            "10d7d9dd205d4596d45997d17434f26207525f129d171a51f9859b1af9f4a07a",
        ),
        (
            "Image",
            "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on root=/dev/ram0",
            "e3a26db3f0375d58ed9756cb986a717a6286f38c6e54e82b457527467fc5ae4c",
        ),
    ],
)
def test_aws_command_lines_are_measured_without_their_line_feed(
    tmp_path: Path, kernel: str, cmdline: str, digest: str
) -> None:
    """The file that AWS ships (eif.md §9) ends in one; what is measured does not."""
    for name in (kernel, "init", "cmdline"):
        (tmp_path / name).write_text(f"{cmdline}\n")
    assert hashlib.sha256((tmp_path / "cmdline").read_bytes()).hexdigest() == digest
    assert Blobs.from_directory(tmp_path, "x86_64" if kernel == "bzImage" else "aarch64").cmdline == cmdline


@pytest.mark.parametrize("text", ["[]", "1", "{", '{"a": "' + "x" * 4096 + '"}'])
def test_custom_metadata_is_a_small_json_object(text: str) -> None:
    """Anything else could not be shown by describe commands (eif.md §4)."""
    with pytest.raises(UsageError):
        parse_custom(text.encode())


@pytest.mark.parametrize("missing", ["ImageName", "CustomMetadata", "DockerInfo"])
def test_metadata_without_a_key_is_malformed(missing: str) -> None:
    """The published reader fails when one is missing; so does this (eif.md §4)."""
    fields = {"ImageName": "", "ImageVersion": "", "BuildMetadata": {}, "DockerInfo": None, "CustomMetadata": None}
    parse_metadata(json.dumps(fields).encode())
    del fields[missing]
    with pytest.raises(ImageFormatError, match=missing):
        parse_metadata(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("config", "identity"),
    [
        (CONFIG, ("Linux", "4.14.256")),
        ("#\n#\n# Linux/x86 6.12.9 Kernel Configuration\n", ("Linux", "6.12.9")),
        ("", ("Unknown", "Unknown")),
        ("\n\n# Linux\n", ("Linux", "Unknown")),
    ],
)
def test_the_kernels_identity_is_in_line_three(config: str, identity: tuple[str, str]) -> None:
    """Words 1 and 3, and Unknown for a missing one (eif.md §4)."""
    assert kernel_identity(config) == identity


@pytest.mark.parametrize(
    ("uri", "tagged", "name"),
    [
        ("hello", "hello:latest", "hello"),
        ("hello:v1", "hello:v1", "hello"),
        ("host:5000/a/hello", "host:5000/a/hello:latest", "host"),
        ("hello@sha256:00", "hello@sha256:00", "hello@sha256"),
        ("oci:/srv/app:v1", "oci:/srv/app:v1", "app"),
    ],
)
def test_references_get_a_tag_and_give_a_name(uri: str, tagged: str, name: str) -> None:
    """A port is not a tag; the name is cut at the first colon, as upstream's is."""
    assert with_tag(uri) == tagged
    assert default_image_name(uri) == name


def test_modules_are_decompressed(tmp_path: Path, blobs: Blobs) -> None:
    """Debian's .ko.xz become .ko; a broken one is an error."""
    good, bad = tmp_path / "a.ko.xz", tmp_path / "b.ko.xz"
    good.write_bytes(lzma.compress(b"module"))
    bad.write_bytes(lzma.compress(b"module")[:-4])
    assert Blobs(blobs.kernel, None, "", blobs.init, (("modules/00-a.ko", good),)).read_modules() == [
        (b"modules/00-a.ko", b"module")
    ]
    with pytest.raises(ImageFormatError):
        Blobs(blobs.kernel, None, "", blobs.init, (("b.ko", bad),)).read_modules()


def test_missing_boot_files_are_e52(tmp_path: Path) -> None:
    """The error lists them."""
    with pytest.raises(MachineError, match="bzImage, cmdline, init") as caught:
        Blobs.from_directory(tmp_path)
    assert caught.value.code == "E52"


def test_the_reason_of_a_failure_is_one_sentence() -> None:
    """Skopeo's log line and buildah's "Error: " are stripped."""
    assert failure_reason('time="2026" level=fatal msg="no \\"such\\" image"') == 'no "such" image'
    assert failure_reason("Error: building: no such file") == "building: no such file"
