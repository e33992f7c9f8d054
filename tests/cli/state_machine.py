"""A machine for the commands of one group: a state directory, and how they are run there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

BIN: Final = Path(sys.executable).parent
LEAKY: Final = ("ALCOVE_", "SOFTHSM2_", "NITRO_CLI_", "AWS_")
PASSPHRASE: Final = "correct horse battery staple"


class StateMachine:
    """A state directory and the commands run in it.

    Args:
        directory: Where; made if need be.
        group: The first word of the commands, such as `ca`.
        environment: Variables beside those of the tests that are not Alcove's.
    """

    def __init__(self, directory: Path, group: str, **environment: str) -> None:
        self.directory = directory
        self.prefix: tuple[str, ...] = ()  # words before the command, such as a program that takes something away
        self._group = group
        directory.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(LEAKY)}
        self.environment = kept | {"ALCOVE_STATE": str(directory / "state")} | environment

    @property
    def place(self) -> Path:
        """The group's own directory."""
        return self.directory / "state" / self._group

    def run(self, *arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command without a terminal; there is never a traceback."""
        done = subprocess.run(
            [*self.prefix, BIN / "alcove", self._group, *map(str, arguments)],
            cwd=self.directory, env=self.environment, input=given, capture_output=True, text=True, check=False,
            start_new_session=True, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done

    def out(self, *arguments: object, given: str = "") -> str:
        """Run what must succeed and return what it printed."""
        done = self.run(*arguments, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fails(self, *arguments: object, given: str = "", status: int = 1) -> str:
        """Run what must fail with one line, and a hint perhaps, and print nothing."""
        done = self.run(*arguments, given=given)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert len(done.stderr.splitlines()) <= 2, done.stderr
        return done.stderr
