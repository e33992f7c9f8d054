"""What init does with the file `oci`: the real source, compiled, without a machine around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BUSYBOX = next((path for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")) if path.exists()), None)
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
needs_busybox = pytest.mark.skipif(BUSYBOX is None, reason="busybox-static is not installed")


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Init with a main of the tests' own (harness.c)."""
    directory = tmp_path_factory.mktemp("harness")
    program = directory / "harness"
    flags = ["-std=gnu17", "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-Wno-return-type", "-fno-sanitize=all"]
    flags.append(f"-I{ROOT / 'src/alcove/guest'}")
    guest = ROOT / "src/alcove/guest"
    sources = [Path(__file__).with_name("harness.c"), guest / "oci.c", guest / "clock.c"]
    sources.append(guest / "log.c")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", *flags, "-o", program, *sources]
    subprocess.run(command, check=True)
    return program


@pytest.fixture
def world() -> Iterator[Path]:
    """A directory that any user may enter, with a program in a place of its own."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "tools").mkdir(mode=0o755)
        if BUSYBOX is not None:
            shutil.copy(BUSYBOX, directory / "tools" / "sh")
        yield directory


def start(
    harness: Path, world: Path, oci: str | None, *command: str, path: str = ""
) -> subprocess.CompletedProcess[str]:
    """Start a command as init would, with that /oci and that PATH in its /env."""
    file = world / "oci"
    if oci is not None:
        file.write_text(oci)
    return subprocess.run(
        [harness, file, *command],
        env={"PATH": path or f"{world}/tools", "HOME": "/home/app"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@needs_root
@needs_busybox
def test_the_program_is_the_images_user_in_the_images_directory(harness: Path, world: Path) -> None:
    """Directory made, ids and groups taken, program found on its own PATH, which it sees, and nothing else."""
    script = "id -u; id -g; id -G; pwd; echo $PATH $HOME; echo $0 $1"
    done = start(harness, world, f"{world}/srv/app\n1000\n1001\n1001\n44\n", "sh", "-c", script, "zero", "one")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "1000", "1001", "1001 44", f"{world}/srv/app", f"{world}/tools /home/app", "zero one",
    ]  # fmt: skip
    made = (world / "srv" / "app").stat()
    assert (made.st_mode & 0o777, made.st_uid, made.st_gid) == (0o755, 0, 0)
    assert not (world / "oci").exists()


@needs_root
@needs_busybox
def test_no_right_is_left(harness: Path, world: Path) -> None:
    """Neither a real, effective nor saved id of root's, and no capability."""
    done = start(
        harness,
        world,
        f"{world}\n1000\n1000\n",
        "sh",
        "-c",
        "grep -E '^(Uid|Gid|Groups|CapEff|CapPrm)' /proc/self/status",
    )
    lines = {line.split(":")[0]: line.split(":")[1].split() for line in done.stdout.splitlines()}
    assert lines["Uid"] == lines["Gid"] == ["1000"] * 4
    assert lines["Groups"] == []
    assert {int(lines[name][0], 16) for name in ("CapEff", "CapPrm")} == {0}


@needs_root
@needs_busybox
def test_its_outputs_can_be_opened_again(harness: Path, world: Path) -> None:
    """The console is the user's, as in a container, so /dev/stdout can be written."""
    with (world / "console").open("w+") as console:
        os.fchmod(console.fileno(), 0o600)
        (world / "oci").write_text("/\n1000\n1000\n")
        subprocess.run(
            [harness, world / "oci", "sh", "-c", "echo again >/proc/self/fd/1"],
            env={"PATH": f"{world}/tools"}, stdin=console, stdout=console, stderr=console, check=True, timeout=60,
        )  # fmt: skip
        assert (world / "console").read_text() == "again\n"
        assert os.fstat(console.fileno()).st_uid == 1000


@needs_busybox
def test_without_the_file_aws_s_rule_holds(harness: Path, world: Path) -> None:
    """The program is searched on init's path, not on the image's."""
    assert start(harness, world, None, "tools/sh").returncode == 127
    inside = start(harness, world, None, "sh", "-c", "pwd")
    assert inside.stdout == "/\n"


@needs_root
@pytest.mark.parametrize(
    ("directory", "command", "said"),
    [
        ("{}", "missing", (127, "cannot run missing")),
        ("{}", "./file", (126, "cannot run ./file")),
        ("{}/file/below", "sh", (126, "cannot enter")),
        ("/" + "x" * 5000, "sh", (126, "cannot enter")),
    ],
)
def test_a_start_that_fails_says_why(
    harness: Path, world: Path, directory: str, command: str, said: tuple[int, str]
) -> None:
    """One line, and the status that a shell would give."""
    (world / "file").write_text("")
    done = start(harness, world, directory.format(world) + "\n0\n0\n", command)
    assert done.returncode == said[0]
    assert said[1] in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "oci",
    [
        "", "/", "/\n0", "srv\n0\n0\n", "\n0\n0\n", "/\n-1\n0\n", "/\n0\nx\n", "/\n0\n\n", "/\n2147483648\n0\n",
        "/\n99999999999999999999999\n0\n", "/\n0\n0\n0 1\n", "/\n0x0\n0\n", "/\n+1\n0\n", "/\n0\n0\n1\n\n",
        "/\n 1\n0\n",
    ],
)  # fmt: skip
def test_a_file_that_is_malformed_stops_the_enclave(harness: Path, world: Path, oci: str) -> None:
    """Never a guess at who the program should be; it is not started at all."""
    done = start(harness, world, oci, "sh", "-c", "echo started")
    assert done.returncode == 99
    assert "started" not in done.stdout
    assert "/oci" in done.stderr
