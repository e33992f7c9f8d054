"""Runs skopeo and buildah: their lines are passed on as they come, and nothing of theirs outlives us.

A program leads a process group of its own. When it is no longer wanted, the group gets SIGTERM, on which buildah takes
its working container away, and SIGKILL when that does not help. Should this process be killed itself, the kernel sends
the program SIGTERM (PR_SET_PDEATHSIG, set by util-linux's setpriv).
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Final

from alcove.errors import MachineError

_TICK: Final = 0.25  # seconds between two looks at how far the program is
_GRACE: Final = 10.0  # seconds that a program has to end after SIGTERM
_MAX_LINE: Final = 1 << 16  # bytes of a line that are kept
_PUSHING: Final = re.compile(r'^pushing image "[^"]*" to "[^"]*": ')  # buildah tells what we told it
_LOG_MESSAGE: Final = re.compile(r'level=\w+ msg="((?:[^"\\]|\\.)*)"')

OnLine = Callable[[str], None]
OnTick = Callable[[], None]


class ProgramError(Exception):
    """A program ended with a status other than 0; the text is its last sentence."""


def run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    on_line: OnLine,
    on_tick: OnTick = lambda: None,
    *,
    code: str,
) -> None:
    """Run a program to its end.

    Args:
        argv: The program and its arguments.
        environment: Its environment; the program is looked for on its PATH.
        on_line: Gets each line of its output.
        on_tick: Called a few times a second while it runs.
        code: Of the error for a missing program.

    Raises:
        ProgramError: When it fails.
        MachineError: When it is missing.
    """
    path = environment.get("PATH", os.defpath)
    if shutil.which(argv[0], path=path) is None:
        hint = f"install it (Debian: apt install {argv[0]}); `alcove doctor` shows what is missing"
        raise MachineError(f"the program {argv[0]} is missing", hint=hint, code=code)
    process = subprocess.Popen(
        [*bound_to_us(path), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        process_group=0,
    )
    last = ""
    try:
        for line in _lines(process, on_tick):
            last = line.strip() or last
            on_line(line.rstrip())
        process.wait()
    finally:
        _end(process)
    if process.returncode:
        raise ProgramError(failure_reason(last) or f"{argv[0]} ended with status {process.returncode}")


@cache
def bound_to_us(path: str) -> tuple[str, ...]:
    """The words before a command that let it end with us; none where setpriv cannot do that."""
    argv = ("setpriv", "--pdeathsig", "TERM", "--")
    try:
        done = subprocess.run(
            [*argv, "true"], env={"PATH": path}, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError:
        return ()
    return () if done.returncode else argv


def _lines(process: subprocess.Popen[bytes], on_tick: OnTick) -> Iterator[str]:
    """The lines of a program's output, and calls of `on_tick` between them, until it closes its end."""
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    descriptor, rest = process.stdout.fileno(), b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], _TICK)
        on_tick()
        if not ready:
            continue
        data = os.read(descriptor, _MAX_LINE)
        *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        rest = rest[-_MAX_LINE:]
        if not data:
            if rest:
                yield rest.decode(errors="replace")
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let nothing of a program's group go on."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        _signal(process, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def failure_reason(line: str) -> str:
    """The sentence in the last line of buildah or skopeo, without its time stamp and level."""
    match = _LOG_MESSAGE.search(line)
    text = re.sub(r"\\(.)", r"\1", match[1]) if match else line
    return _PUSHING.sub("", text.removeprefix("Error: "))
