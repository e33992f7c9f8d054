"""Real enclaves for tests, shared where a test does not end them; everything started here is ended here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NEEDED = ("bwrap", "buildah", "skopeo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this directory, and say loudly why it cannot run."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"`make setup` has not been run: {', '.join(missing)} missing"))


class Cli:
    """Runs commands against a runtime directory of the tests' own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run_directory = directory / "run"
        self.environment = {**os.environ, "ALCOVE_RUN": str(self.run_directory)}

    def __call__(self, program: str, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a program of ours and return what it said, whatever its status."""
        return subprocess.run(
            self.command(program, *arguments),
            env=self.environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def command(self, program: str, *arguments: object) -> list[str]:
        """The argument list of a program of ours."""
        return [str(BIN / program), *map(str, arguments)]

    def json(self, program: str, *arguments: object) -> Any:
        """Run a program that must succeed and return its JSON."""
        done = self(program, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run_enclave(self, eif: Path, *flags: str, memory: int = 256) -> dict[str, Any]:
        """Start an enclave with one vCPU."""
        started: dict[str, Any] = self.json(
            "nitro-cli", "run-enclave", "--eif-path", eif, "--cpu-count", 1, "--memory", memory, *flags
        )
        return started

    def terminate(self, started: dict[str, Any]) -> None:
        """End an enclave that must be running."""
        ended = self.json("nitro-cli", "terminate-enclave", "--enclave-id", started["EnclaveID"])
        assert ended["Terminated"] is True


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    made = Cli(tmp_path_factory.mktemp("vm"))
    yield made
    made("nitro-cli", "terminate-enclave", "--all")


@pytest.fixture(scope="session")
def hello_eif(cli: Cli) -> Path:
    """The hello image, built by buildah."""
    context = cli.directory / "hello"
    shutil.copytree(ROOT / "examples" / "hello", context)
    busybox = next(path for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")) if path.exists())
    shutil.copy(busybox, context / "busybox")
    target = cli.directory / "hello.eif"
    built = cli(
        "nitro-cli", "build-enclave", "--docker-dir", context, "--docker-uri", "hello:test", "--output-file", target
    )
    assert built.returncode == 0, built.stderr
    return target


@pytest.fixture(scope="session")
def debug_enclave(cli: Cli, hello_eif: Path) -> Iterator[dict[str, Any]]:
    """A running enclave in debug mode, which tests look at and do not end."""
    started = cli.run_enclave(hello_eif, "--debug-mode", "--enclave-name", "watched")
    yield started
    cli.terminate(started)


@pytest.fixture
def machines() -> Callable[[int], list[str]]:
    """The QEMU and jail processes below a supervisor, found by walking the process tree."""

    def below(pid: int) -> list[str]:
        found, queue = [], [pid]
        while queue:
            try:
                children = Path(f"/proc/{queue[0]}/task/{queue[0]}/children").read_text().split()
            except OSError:
                children = []
            queue = queue[1:] + [int(child) for child in children]
            found += children
        return found

    return below
