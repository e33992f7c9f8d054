"""`alcove dev`: build, run in debug mode, follow the console; again when a file changes.

The commands are those that a person would type, so what works here works by hand. In debug mode the registers of
documents are zero, and KMS refuses them: the application's tests are the place for attested calls.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from alcove.errors import AlcoveError, MachineError
from alcove.scaffold import rootfs
from alcove.scaffold.project import FILE, Project

Say = Callable[[str], None]
State = Mapping[str, tuple[int, int]]
"""Paths below a project, each with its time in nanoseconds and its size."""

IGNORED: Final = (".git", "__pycache__", ".*_cache", ".venv", "*.eif", "*.part", "rootfs.tar", ".rootfs-kits")
POLL_SECONDS: Final = 0.5
_ROOTFS: Final = "rootfs.tar"
_KITS: Final = ".rootfs-kits"


class Developer:
    """Runs a project's enclave anew at each change.

    Args:
        project: What.
        say: Tells the person what happens.
        environment: Variables of the commands.
    """

    def __init__(self, project: Project, say: Say, environment: Mapping[str, str] | None = None) -> None:
        self._project = project
        self._say = say
        self._environment = dict(os.environ if environment is None else environment)
        self._enclave: str | None = None
        self._console: subprocess.Popen[bytes] | None = None

    def run(self, *, once: bool = False) -> None:
        """Until it is interrupted; with `once` until the enclave has ended.

        Raises:
            AlcoveError: With `once`: the build or the start failed.
        """
        try:
            while True:
                before = snapshot(self._project.directory)
                try:
                    self._start()
                except AlcoveError as error:
                    if once:
                        raise
                    self._say(f"error: {error}")
                if once:
                    self._follow()
                    return
                self._wait(before)
                self._stop()
        finally:
            self._stop()

    def _start(self) -> None:
        project = self._project
        began = time.monotonic()
        if project.prepare:
            self._command(list(project.prepare))
        self._make_rootfs()
        built = self._json(
            "nitro-cli", "build-enclave", "--docker-dir", project.directory, "--docker-uri", f"{project.name}:dev",
            "--output-file", project.eif,
        )  # fmt: skip
        self._say(f"built in {time.monotonic() - began:.1f} s, PCR0 {built['Measurements']['PCR0'][:16]}…")
        started = self._json(
            "nitro-cli", "run-enclave", "--eif-path", project.eif, "--cpu-count", project.cpus, "--memory",
            project.memory, "--debug-mode", "--enclave-name", f"{project.name}-dev",
        )  # fmt: skip
        self._enclave = started["EnclaveID"]
        self._say(f"runs as {project.name}-dev, CID {started['EnclaveCID']}; Ctrl-C ends it")
        self._console = subprocess.Popen(
            [*_program("nitro-cli"), "console", "--enclave-id", self._enclave], env=self._environment
        )

    def _make_rootfs(self) -> None:
        """Made once, and again when other kits are wanted."""
        kits, stamp, target = self._project.rootfs, self._project.directory / _KITS, self._project.directory / _ROOTFS
        wanted = " ".join(kits)
        if not kits or (target.exists() and stamp.exists() and stamp.read_text() == wanted):
            return
        self._say(f"making {_ROOTFS} of Debian's packages: {wanted}")
        rootfs.make(target, kits)
        stamp.write_text(wanted)

    def _follow(self) -> None:
        if self._console is not None:
            self._console.wait()

    def _wait(self, before: State) -> None:
        """Until a file differs from what was built."""
        ended = False
        while True:
            if self._console is not None and self._console.poll() is not None and not ended:
                ended = True
                self._say("the enclave has ended; it starts again when a file changes")
            now = snapshot(self._project.directory)
            changed = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                self._say(f"changed: {changed[0]}{more}")
                return
            time.sleep(POLL_SECONDS)

    def _stop(self) -> None:
        if self._console is not None:
            self._console.terminate()
            self._console.wait()
            self._console = None
        if self._enclave is not None:
            # it may have ended by itself
            command = [*_program("nitro-cli"), "terminate-enclave", "--enclave-id", self._enclave]
            subprocess.run(command, env=self._environment, capture_output=True, check=False)
            self._enclave = None

    def _json(self, program: str, *arguments: object) -> Any:
        return json.loads(self._command([*_program(program), *map(str, arguments)], keep=True))

    def _command(self, command: Sequence[str], *, keep: bool = False) -> bytes:
        """Run a command in the project; its errors go to the person."""
        try:
            done = subprocess.run(
                command,
                cwd=self._project.directory,
                env=self._environment,
                stdout=subprocess.PIPE if keep else None,
                check=False,
            )
        except OSError as error:
            raise MachineError(f"`{command[0]}` cannot be run: {error.strerror}", hint=f"see {FILE}") from None
        if done.returncode != 0:
            raise MachineError(f"`{Path(command[0]).name}` ended with status {done.returncode}")
        return done.stdout or b""


def snapshot(directory: Path) -> State:
    """What is in a project, but for what is made in it: what `.gitignore` names is not a change.

    Of git's patterns those are understood that name a file or directory at whatever depth.
    """
    patterns = [*IGNORED, *_gitignore(directory / ".gitignore")]

    def wanted(name: str) -> bool:
        return not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    found: dict[str, tuple[int, int]] = {}
    for place, directories, files in os.walk(directory):
        directories[:] = filter(wanted, sorted(directories))
        for path in (Path(place) / name for name in files if wanted(name)):
            with contextlib.suppress(OSError):  # gone since
                status = path.lstat()
                found[str(path.relative_to(directory))] = (status.st_mtime_ns, status.st_size)
    return found


def _gitignore(path: Path) -> list[str]:
    try:
        lines = [line.strip().strip("/") for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return []
    return [line for line in lines if line and not line.startswith(("#", "!"))]


def _program(name: str) -> list[str]:
    return [str(Path(sys.executable).parent / name)]
