"""build-enclave as a person runs it: its refusals, its end on Ctrl-C, and what it shows where."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
KINDS = "application/vnd.oci.image"
needs_buildah = pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed")
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


class Place:
    """A directory with boot files, for images and temporary files of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.work, self.out, self.blobs = (directory / name for name in ("work", "out", "blobs"))
        for path in (self.work, self.out, self.blobs):
            path.mkdir()
        for name in ("bzImage", "Image", "cmdline", "init", "nsm.ko"):
            (self.blobs / name).write_text(name)
        self.target = self.out / "app.eif"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"SOURCE_DATE_EPOCH", "NITRO_CLI_BLOBS", "NITRO_CLI_ARTIFACTS"}
        } | {"TMPDIR": str(self.work), "ALCOVE_STATE": str(directory / "state")}

    def command(self, uri: str, *flags: object, program: str = "nitro-cli", blobs: bool = True) -> list[str]:
        """The arguments of a build."""
        own = ["--blobs", str(self.blobs)] if blobs else []
        fixed = ["build-enclave", "--docker-uri", uri, "--output-file", str(self.target), *own]
        return [str(BIN / program), *fixed, *map(str, flags)]

    def run(self, uri: str, *flags: object, **more: Any) -> subprocess.CompletedProcess[str]:
        """Build, whatever comes of it; a traceback must not."""
        environment = self.environment | more.pop("environment", {})
        argv = self.command(uri, *flags, **more)
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert "Traceback" not in done.stderr
        return done

    def described(self) -> dict[str, Any]:
        """What describe-eif says of the image."""
        done = subprocess.run(
            [BIN / "nitro-cli", "describe-eif", "--eif-path", self.target], capture_output=True, check=True
        )
        described: dict[str, Any] = json.loads(done.stdout)
        return described

    def assert_nothing_left(self) -> None:
        """Neither an image, nor half of one, nor a temporary file."""
        assert list(self.out.iterdir()) == []
        assert list(self.work.iterdir()) == []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def image_name() -> Iterator[str]:
    """A name in buildah's store, freed afterwards."""
    name = f"alcove-cli-test-{os.getpid()}"
    yield name
    subprocess.run(["buildah", "--storage-driver", "vfs", "rmi", name], capture_output=True, check=False)


@pytest.fixture
def layout(tmp_path: Path) -> Callable[..., str]:
    """Makes an OCI layout with one layer: a program, and a file of any size; gives its name."""

    def add(directory: Path, data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (directory / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (directory / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": f"{KINDS}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def make(*, size: int = 1, architecture: str = "amd64", config: dict[str, Any] | None = None) -> str:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            for name, length in (("app", 1), ("data", size)):
                member = tarfile.TarInfo(name)
                member.size, member.mode = length, 0o755
                archive.addfile(member, io.BytesIO(bytes(length)))
        directory = tmp_path / "layout"
        image = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {"Cmd": ["/app"], "Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{KINDS}.manifest.v1+json",
            "config": add(directory, json.dumps(image).encode(), "config.v1+json"),
            "layers": [add(directory, layer.getvalue(), "layer.v1.tar")],
        }
        listed = add(directory, json.dumps(manifest).encode(), "manifest.v1+json")
        (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return f"oci:{directory}"

    return make


def wait(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def running(word: str) -> list[str]:
    """The processes with that word among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if word.encode() in arguments and state != "Z":
                found.append(entry.name)
    return found


def interrupt(
    place: Place, argv: list[str], moment: Callable[[], object], number: signal.Signals = signal.SIGINT
) -> str:
    """Start a build, send it a signal at a moment, and look at the end; what it said on standard error."""
    said = place.directory / "stderr"
    with said.open("wb") as file:
        process = subprocess.Popen(
            argv, env=place.environment, stdout=subprocess.PIPE, stderr=file, start_new_session=True, text=True
        )
    try:
        wait(lambda: moment() or process.poll() is not None)
        assert process.poll() is None, said.read_text()
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, said.read_text()
    assert out == ""
    assert "Traceback" not in said.read_text()
    return said.read_text()


def dockerfile(place: Place, step: str) -> Path:
    """A directory with a Dockerfile that ends in this step, and a program for it."""
    context = place.directory / "context"
    context.mkdir()
    shutil.copy("/usr/bin/busybox", context / "busybox")
    (context / "Dockerfile").write_text(f"FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\n{step}\n")
    return context


@needs_buildah
def test_ctrl_c_during_a_run_step_leaves_nothing(place: Place, image_name: str) -> None:
    """The step's own process ends too; no image, no temporary directory."""
    seconds = f"61.{os.getpid()}"
    context = dockerfile(place, f'RUN ["/bin/busybox", "sleep", "{seconds}"]')
    interrupt(place, place.command(image_name, "--docker-dir", context), lambda: running(seconds))
    wait(lambda: not running(seconds))
    place.assert_nothing_left()


@needs_skopeo
def test_ctrl_c_while_a_registry_is_silent_leaves_nothing(place: Place) -> None:
    """Skopeo is waiting for an answer that never comes; it ends with the build."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        name = f"docker://127.0.0.1:{server.getsockname()[1]}/app:latest"
        accepted = []

        def connected() -> bool:
            try:
                accepted.append(server.accept())
            except TimeoutError:
                return False
            return True

        interrupt(place, place.command(name), connected)
        for connection, _ in accepted:
            connection.close()
    wait(lambda: not running(name))
    place.assert_nothing_left()


@needs_skopeo
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_end_while_the_image_is_written_leaves_nothing(
    place: Place, layout: Callable[..., str], number: signal.Signals
) -> None:
    """Ctrl-C, kill or a closed terminal: the half-written file goes; its name never was the image's."""
    if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("it is ignored here, as under nohup")
    name = layout(size=384 << 20)
    interrupt(place, place.command(name), lambda: list(place.out.glob(".app.eif.*")), number)
    place.assert_nothing_left()


@needs_skopeo
def test_ctrl_c_at_the_start_leaves_nothing(place: Place, layout: Callable[..., str]) -> None:
    """As soon as there is anything to leave behind."""
    name = layout(size=64 << 20)
    interrupt(place, place.command(name), lambda: list(place.work.iterdir()))
    place.assert_nothing_left()


@needs_skopeo
def test_on_a_pipe_there_are_awss_lines_and_nothing_else(place: Place, layout: Callable[..., str]) -> None:
    """Standard output is the measurements alone (cli.md §2)."""
    done = place.run(layout())
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["Start building the Enclave Image...", "Enclave Image successfully created."]
    assert json.loads(done.stdout)["Measurements"] == place.described()["Measurements"]


@needs_skopeo
def test_on_a_terminal_a_bar_moves_and_goes(place: Place, layout: Callable[..., str]) -> None:
    """Stage, bytes and rate while the image is written; the lines for people stay, standard output is clean."""
    name = layout(size=128 << 20)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        place.command(name),
        env=place.environment | {"TERM": "xterm", "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            break
        shown += chunk
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["Measurements"] == place.described()["Measurements"]
    for words in (b"writing the image", b"MiB", b"/s", b"Enclave Image successfully created."):
        assert words in shown


@needs_skopeo
@pytest.mark.parametrize(("program", "tool"), [("nitro-cli", ("nitro-cli", "1.5.0")), ("alcove", ("alcove", "0.1.0"))])
def test_the_build_tool_is_the_programs_name(
    place: Place, layout: Callable[..., str], program: str, tool: tuple[str, str]
) -> None:
    """Under AWS's name the metadata has AWS's values (eif.md §4)."""
    assert place.run(layout(), program=program).returncode == 0
    metadata = place.described()["Metadata"]
    assert (metadata["BuildTool"], metadata["BuildToolVersion"]) == tool


@needs_skopeo
def test_name_version_time_and_metadata_are_the_users(place: Place, layout: Callable[..., str]) -> None:
    """The four flags that fill the metadata section; --build-time wins over SOURCE_DATE_EPOCH."""
    custom = place.directory / "custom.json"
    custom.write_text('{"Team": "blue"}')
    flags = ["--name", "n", "--version", "v", "--metadata", custom, "--build-time", "2026-01-31T12:00:00Z"]
    assert place.run(layout(), *flags, environment={"SOURCE_DATE_EPOCH": "1"}).returncode == 0
    described = place.described()
    assert (described["ImageName"], described["ImageVersion"]) == ("n", "v")
    assert (described["Metadata"]["BuildTime"], described["Metadata"]["Team"]) == ("2026-01-31T12:00:00Z", "blue")


@needs_skopeo
def test_the_architecture_chooses_the_kernel(place: Place, layout: Callable[..., str]) -> None:
    """--arch aarch64 takes Image from the blobs, asks for an arm64 image and says so in the header."""
    done = place.run(layout(architecture="arm64"), "--arch", "aarch64")
    assert done.returncode == 0, done.stderr
    data = place.target.read_bytes()
    assert data[6:8] == b"\0\1"
    assert data[560:565] == b"Image"
    wrong = place.run(layout(architecture="arm64"), "--arch", "x86_64")
    assert wrong.returncode == 48
    assert "hint: pass --arch aarch64" in wrong.stderr


@needs_skopeo
def test_explain_names_every_file_on_standard_error(place: Place, layout: Callable[..., str]) -> None:
    """What was measured into which PCR; standard output stays JSON."""
    (place.blobs / "init").write_text("an init")
    done = place.run(layout(), "--explain")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert hashlib.sha256(b"an init").hexdigest() in done.stderr
    for words in ("rootfs/app", "rootfs/data", "PCR0 ", "PCR2 "):
        assert words in done.stderr


@needs_skopeo
def test_a_layer_beyond_the_limit_stops_the_build(place: Place, layout: Callable[..., str]) -> None:
    """--max-layer bounds what a layer may unpack to."""
    done = place.run(layout(size=1 << 20), "--max-layer", "512K")
    assert done.returncode == 48
    assert "524288" in done.stderr
    place.assert_nothing_left()
    assert place.run(layout(size=1 << 20), "--max-layer", "2M").returncode == 0


@needs_skopeo
def test_every_way_to_differ_from_docker_is_a_warning(place: Place, layout: Callable[..., str]) -> None:
    """The build goes on; each warning is a line of standard error."""
    config = {"Cmd": ["/app"], "Entrypoint": ["/app"], "WorkingDir": "/srv", "User": "7", "Env": ["PATH=/"]}
    done = place.run(layout(config=config))
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [warning.split()[1] for warning in warnings] == ["the", "WORKDIR", "USER"]


@needs_skopeo
def test_a_label_that_another_init_would_not_read_is_a_warning(place: Place, layout: Callable[..., str]) -> None:
    """With AWS's boot files LABEL alcove.log does nothing, and says so; the image is nitro-cli's."""
    plain = json.loads(place.run(layout(config={"Cmd": ["/app"]})).stdout)
    done = place.run(layout(config={"Cmd": ["/app"], "Labels": {"alcove.log": "true"}}))
    assert json.loads(done.stdout) == plain
    assert "warning: LABEL alcove.log is ignored" in done.stderr
    wrong = place.run(layout(config={"Cmd": ["/app"], "Labels": {"alcove.log": "on"}}))
    assert wrong.returncode == 48
    assert "hint: write LABEL alcove.log" in wrong.stderr


@pytest.mark.parametrize(
    ("flags", "status", "begins"),
    [
        (["--oci-entrypoint"], 2, "[ E02 ] "),
        (["--show-log"], 2, "[ E02 ] "),
        (["--build-time", "yesterday"], 3, "[ E03 ] "),
        (["--build-time", "2026-02-30T00:00:00Z"], 3, "[ E03 ] "),
        (["--max-layer", "lots"], 3, "[ E03 ] "),
        (["--max-layer", "0"], 3, "[ E03 ] "),
        (["--arch", "riscv64"], 2, "usage: "),
        (["--metadata", "MISSING"], 19, "[ E19 ] "),
        (["--metadata", "LIST"], 48, "[ E48 ] "),
        (["--metadata", "LONG"], 48, "[ E48 ] "),
        (["--signing-certificate", "LIST"], 2, "usage: "),
        (["--private-key", "LIST"], 2, "usage: "),
        (["--blobs", "BINARY"], 48, "[ E48 ] "),
        (["--signing-certificate", "LIST", "--private-key", "MISSING"], None, "[ E"),
        (["--output-file", "MISSING/app.eif"], 19, "[ E19 ] "),
        (["--docker-dir", "MISSING"], 49, "[ E49 ] "),
        (["--docker-dir", "EMPTY"], 49, "[ E49 ] "),
        (["--blobs", "MISSING"], 52, "[ E52 ] "),
    ],
)
def test_bad_input_gets_one_line_and_awss_status(
    place: Place, flags: list[str], status: int | None, begins: str
) -> None:
    """cli.md §4 and §5: the code in brackets, its number as the status, a hint, and nothing left behind."""
    listed, long, empty = (place.directory / name for name in ("list", "long", "empty"))
    listed.write_text("[]")
    long.write_text(json.dumps({"x": "y" * 4096}))
    empty.mkdir()
    binary = place.directory / "binary"
    shutil.copytree(place.blobs, binary)
    (binary / "cmdline").write_bytes(b"\xff")
    names = {"BINARY": binary, "LIST": listed, "LONG": long, "EMPTY": empty, "MISSING": place.directory / "missing"}
    given = [str(names[f]) if f in names else f.replace("MISSING", str(names["MISSING"])) for f in flags]
    done = place.run("app:v1", *given)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("[ E", "nitro-cli: error", "usage: "))]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(begins)
    assert done.returncode == (int(lines[0][3:5]) if status is None else status)
    assert done.stdout == ""
    place.assert_nothing_left()


@pytest.mark.parametrize("epoch", ["soon", "-1", "9" * 30])
def test_a_source_date_epoch_that_is_no_time_is_e03(place: Place, epoch: str) -> None:
    """It is not passed over: the image would not be what its maker wants."""
    done = place.run("app:v1", environment={"SOURCE_DATE_EPOCH": epoch})
    assert done.returncode == 3
    assert "SOURCE_DATE_EPOCH" in done.stderr


@needs_skopeo
@pytest.mark.parametrize("uri", ["oci:/nonexistent", "docker-archive:/nonexistent"])
def test_an_image_that_cannot_be_fetched_is_e50(place: Place, uri: str) -> None:
    """And nothing is left behind."""
    assert place.run(uri).returncode == 50
    place.assert_nothing_left()


@needs_skopeo
def test_artifacts_go_where_aws_puts_them(place: Place, layout: Callable[..., str]) -> None:
    """NITRO_CLI_ARTIFACTS is made when missing; where it cannot be, E51 (cli.md §3.5)."""
    artifacts = place.directory / "made" / "here"
    assert place.run(layout(), environment={"NITRO_CLI_ARTIFACTS": str(artifacts)}).returncode == 0
    assert list(artifacts.iterdir()) == []
    done = place.run(layout(), environment={"NITRO_CLI_ARTIFACTS": str(place.target / "below-a-file")})
    assert done.returncode == 51


@needs_buildah
def test_artifacts_may_go_to_a_relative_path(place: Place, image_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken from where the user is, also by the steps of a Dockerfile."""
    monkeypatch.chdir(place.directory)
    context = dockerfile(place, 'RUN ["/bin/busybox", "touch", "/made"]\nCMD ["/bin/busybox"]')
    done = place.run(image_name, "--docker-dir", context, environment={"NITRO_CLI_ARTIFACTS": "work/here"})
    assert done.returncode == 0, done.stderr


def test_a_full_disk_while_an_image_is_copied_has_its_own_hint(place: Place) -> None:
    """What helps is another place for temporary files; skopeo's words come along."""
    programs = place.directory / "programs"
    programs.mkdir()
    (programs / "skopeo").write_text("#!/bin/sh\necho 'writing blob: write /x: no space left on device' >&2; exit 1\n")
    (programs / "skopeo").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    done = place.run("docker-archive:app.tar", environment={"PATH": path})
    assert done.returncode == 50
    assert "no space left on device\nhint: set NITRO_CLI_ARTIFACTS or TMPDIR" in done.stderr
