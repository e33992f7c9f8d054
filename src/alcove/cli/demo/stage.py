"""Where the story is played: a directory, commands typed for the reader, background programs that end with it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, Final, Self

from alcove.cli import output
from alcove.errors import MachineError

_END_SECONDS: Final = 10.0
_READY_SECONDS: Final = 30.0


class Stage:
    """Runs commands as a person would type them, and shows both.

    Args:
        directory: The working directory of every command.
        environment: Variables on top of this process's own.
    """

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        self._environment = {**os.environ, **environment, "PATH": path}
        self._background: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, log in reversed(self._background):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()

    def export(self, **variables: str) -> None:
        """Set variables for the commands that follow."""
        self._environment |= variables

    def run(self, *command: str, status: int = 0, show: bool = True) -> str:
        """Type a command and show its output.

        Returns:
            Its standard output.

        Raises:
            MachineError: It ended with another status than ``status``.
        """
        _prompt(shlex.join(command))
        sys.stdout.flush()
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        text = done.stdout.decode(errors="replace")
        if show and text:
            output.text(text.rstrip("\n"))
        if done.returncode != status:
            raise MachineError(
                f"`{shlex.join(command)}` ended with status {done.returncode}, not {status}",
                hint="its own message is above; `alcove doctor` checks the machine",
            )
        return text

    def json(self, *command: str, status: int = 0) -> Any:
        """Type a command and show and return its JSON."""
        return json.loads(self.run(*command, status=status))

    def start(self, *command: str, ready: str) -> None:
        """Start a program in the background and wait until its output has the word ``ready``."""
        _prompt(shlex.join(command) + " &")
        path = self.directory / f"{Path(command[0]).name}-{len(self._background)}.log"
        log = path.open("wb")
        process = subprocess.Popen(
            command, cwd=self.directory, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        self._background.append((process, log))
        deadline = time.monotonic() + _READY_SECONDS
        while ready not in path.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                said = [line for line in path.read_text().splitlines() if line and not line.startswith("hint:")]
                raise MachineError(f"`{command[0]}` did not start: {said[-1] if said else 'it said nothing'}")
            time.sleep(0.05)
        output.text(path.read_text().rstrip("\n"))


def chapter(number: int, title: str, text: str) -> None:
    """Announce a part of the story."""
    output.text(f"\n{output.bold(f'{number}. {title}')}\n{text}\n")


def explain(text: str) -> None:
    """Say what was just seen."""
    output.text(f"   → {text}\n")


def _prompt(line: str) -> None:
    output.text(output.bold(f"$ {line}"))
