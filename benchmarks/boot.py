"""What the benchmarks of running enclaves share: the hello image, and our commands in directories of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.process import FailedError

BIN = Path(sys.executable).parent
HELLO = Path(__file__).parent.parent / "examples" / "hello"
MEMORY_MIB = 256


class Commands:
    """Our programs, with a runtime directory that is nobody else's; the tools tree is the machine's."""

    def __init__(self, directory: Path) -> None:
        self.environment = os.environ | {"ALCOVE_RUN": str(directory / "run")}

    def __call__(self, *arguments: object) -> Any:
        """Run nitro-cli and return its JSON.

        Raises:
            FailedError: It ended with another status than 0.
        """
        argv = [str(BIN / "nitro-cli"), *map(str, arguments)]
        done = subprocess.run(argv, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise FailedError(f"nitro-cli {arguments[0]} ended with status {done.returncode}: {''.join(last)}")
        return json.loads(done.stdout)

    def start(self, image: Path) -> dict[str, Any]:
        """Start an enclave of one vCPU under TCG."""
        flags = ("--cpu-count", 1, "--memory", MEMORY_MIB, "--accelerator", "tcg")
        started: dict[str, Any] = self("run-enclave", "--eif-path", image, *flags)
        return started

    def end(self, started: dict[str, Any]) -> None:
        """Terminate it."""
        self("terminate-enclave", "--enclave-id", started["EnclaveID"])


def hello(commands: Commands, directory: Path, given: Path | None) -> Path:
    """The image that was given, or examples/hello, built with the machine's busybox."""
    if given is not None:
        return given.absolute()
    context = directory / "hello"
    shutil.copytree(HELLO, context)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FailedError("busybox is not installed, and no image was given with --eif")
    shutil.copy(busybox, context / "busybox")
    image = directory / "hello.eif"
    commands("build-enclave", "--docker-dir", context, "--docker-uri", "hello:bench", "--output-file", image)
    return image
