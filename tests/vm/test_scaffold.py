"""Projects from templates, in real enclaves: what `alcove new` makes, and what `alcove dev` does with it."""

from __future__ import annotations

import filecmp
import json
import platform
import queue
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmarks.net_parent import service

from alcove.enclave.allocator import required_mib

pytest.importorskip("ziglang", reason="the static template is compiled by ziglang, of the dev group")

COMPILER = f"{sys.executable} -m ziglang cc -target {platform.machine()}-linux-musl"
SECONDS = 300
PYTHON_EIF_LIMIT = 60_000_000  # bytes


class Dev:
    """A running `alcove dev`; its lines, whichever stream they come from."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.seen: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def wait_for(self, text: str) -> str:
        """The next line with this text."""
        while True:
            try:
                line = self._lines.get(timeout=SECONDS)
            except queue.Empty:
                pytest.fail(f"no {text!r} in:\n{''.join(self.seen)}")
            self.seen.append(line)
            if text in line:
                return line


@contextmanager
def developing(cli: Any, directory: Path, name: str) -> Iterator[Dev]:
    """`alcove dev` in a project; ended by a signal: not SIGINT, which what runs in the background may ignore."""
    with subprocess.Popen(
        cli.command("alcove", "dev", directory / name),
        env=cli.environment | {"CC": COMPILER, "ZIG_GLOBAL_CACHE_DIR": str(directory / "zig")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            yield Dev(process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=SECONDS)


def say_to(cli: Any, name: str, line: str = "") -> str:
    """What an enclave says on port 5000."""
    done = subprocess.run(
        cli.command("alcove", "connect", name, 5000, "--wait", SECONDS),
        input=line, env=cli.environment, capture_output=True, text=True, check=False, timeout=2 * SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def new(cli: Any, directory: Path, name: str, template: str) -> Path:
    """A project in a directory."""
    made = subprocess.run(
        cli.command("alcove", "new", name, "--template", template), cwd=directory, env=cli.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return directory / name


def test_dev_runs_a_project_and_runs_it_again_when_it_changes(cli: Any, tmp_path: Path) -> None:
    """The console is followed, a change builds and starts anew, a build that fails is said, a signal leaves nothing."""
    project = new(cli, tmp_path, "greeter", "static")
    with developing(cli, tmp_path, "greeter") as dev:
        dev.wait_for("runs as greeter-dev")
        dev.wait_for("greeter waits on vsock port 5000")
        assert say_to(cli, "greeter-dev") == "hello from greeter\n"
        source = project / "main.c"
        good = source.read_text()
        source.write_text(good + "this is not C\n")
        dev.wait_for("changed: main.c")
        dev.wait_for("error: `make` ended with status 2")
        assert "greeter-dev" not in cli("nitro-cli", "describe-enclaves").stdout
        source.write_text(good.replace("hello from", "good day from"))
        dev.wait_for("changed: main.c")
        dev.wait_for("greeter waits on vsock port 5000")
        assert say_to(cli, "greeter-dev") == "good day from greeter\n"
    assert dev.process.returncode == 128 + signal.SIGTERM
    assert "greeter-dev" not in cli("nitro-cli", "describe-enclaves").stdout


def test_the_python_template_is_small_the_same_each_time_and_runs(cli: Any, tmp_path: Path) -> None:
    """Twice the same root file system; with boto3 and the SDK the image is below 60 MB, and answers."""
    project = new(cli, tmp_path, "vault", "python")
    for name in ("rootfs.tar", "again.tar"):
        made = cli("alcove", "rootfs", project / name, "--with", "boto3")
        assert made.returncode == 0, made.stderr
    assert filecmp.cmp(project / "rootfs.tar", project / "again.tar", shallow=False)
    (project / "again.tar").unlink()
    eif = tmp_path / "vault.eif"
    cli.json("nitro-cli", "build-enclave", "--docker-dir", project, "--docker-uri", "vault:test", "--output-file", eif)
    size = eif.stat().st_size
    assert size < PYTHON_EIF_LIMIT
    started = cli.run_enclave(eif, "--enclave-name", "vault", memory=max(512, required_mib(size)))
    try:
        answer = json.loads(say_to(cli, "vault", '{"environment": {"AWS_REGION": "us-east-1"}}\n'))
        assert answer == {"error": "KeyError: 'ciphertext'"}
    finally:
        cli.terminate(started)


def test_the_node_template_runs(cli: Any, tmp_path: Path) -> None:
    """As its README has it: an HTTP server in Node.js, not in debug mode, reached through a pipe and as a TCP port."""
    project = new(cli, tmp_path, "site", "node")
    made = cli("alcove", "rootfs", project / "rootfs.tar", "--with", "node")
    assert made.returncode == 0, made.stderr
    eif = tmp_path / "site.eif"
    cli.json("nitro-cli", "build-enclave", "--docker-dir", project, "--docker-uri", "site:test", "--output-file", eif)
    memory = max(1024, required_mib(eif.stat().st_size))
    started = cli.run_enclave(eif, "--enclave-name", "site", memory=memory)
    try:
        head, _, body = say_to(cli, "site", "GET /a HTTP/1.0\r\n\r\n").partition("\n\n")
        assert head.startswith("HTTP/1.1 200 OK\n")
        assert json.loads(body) == {"enclave": "site", "path": "/a"}
        with (
            service(cli.environment, "alcove", "publish", "site", "-p", "0:5000", ready="leads to") as (_, line),
            urllib.request.urlopen(f"http://{line.split()[0]}/b", timeout=SECONDS) as answer,
        ):
            assert json.load(answer) == {"enclave": "site", "path": "/b"}
    finally:
        cli.terminate(started)
