"""`alcove exec`, `connect` and `forward` as a person runs them, without an enclave."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alcove.hostvsock.forward import LOOPBACK

ALCOVE = Path(sys.executable).parent / "alcove"
Alcove = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def alcove() -> Iterator[Alcove]:
    """Runs `alcove` with a runtime directory of its own; it must not show a traceback."""
    with tempfile.TemporaryDirectory(prefix="alcove-") as name:

        def alcove(*arguments: object, run: str = f"{name}/run") -> subprocess.CompletedProcess[str]:
            done = subprocess.run(
                [ALCOVE, *map(str, arguments)],
                env={**os.environ, "ALCOVE_RUN": run},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert "Traceback" not in done.stderr
            return done

        yield alcove


def test_exec_becomes_the_program(alcove: Alcove) -> None:
    """Its status, its output and its arguments, flags included, are the program's; vsock is there."""
    done = alcove("exec", "--", "sh", "-c", 'echo "$0 $1"; exit 7', "a b", "--flag")
    assert (done.returncode, done.stdout, done.stderr) == (7, "a b --flag\n", "")
    code = "import socket; s = socket.socket(socket.AF_VSOCK); s.bind((3, 99)); print(s.getsockname())"
    assert alcove("exec", sys.executable, "-c", code).stdout == "(3, 99)\n"


def test_exec_says_what_it_cannot_run(alcove: Alcove) -> None:
    """An unknown program, and a runtime directory whose sockets could have no address: one line, a hint, no program."""
    done = alcove("exec", "--", "no-such-program")
    assert done.returncode == 1
    assert done.stderr.startswith("alcove: error: there is no program `no-such-program`\nhint: ")
    with tempfile.TemporaryDirectory(prefix="x" * 80) as long:
        done = alcove("exec", "--", "echo", "ran", run=long)
    assert (done.returncode, done.stdout) == (1, "")
    assert "80 bytes" in done.stderr


def test_exec_says_whom_it_does_not_cover(alcove: Alcove) -> None:
    """The help names static binaries and Go."""
    said = alcove("exec", "--help").stdout
    assert "static binaries" in said
    assert "Go" in said


def test_connect_refuses_what_is_not_there(alcove: Alcove) -> None:
    """An unknown enclave is E11, at once or after the wait; numbers are checked."""
    for extra in ((), ("--wait", "0.3")):
        done = alcove("connect", "16", "5000", *extra)
        assert done.returncode == 11
        assert done.stderr.startswith("[ E11 ] no enclave has the CID, id or name `16`\nhint: ")
    assert alcove("connect", "16", "port").returncode == 3
    assert alcove("connect", "16", "5000", "--wait", "-1").returncode == 2
    assert "argument --wait: from 0 to 86400\n" in alcove("connect", "16", "5000", "--wait", "long").stderr


@pytest.mark.skipif(LOOPBACK.exists(), reason="this kernel has vsock's loopback")
def test_forward_needs_a_loopback(alcove: Alcove) -> None:
    """Without one it says so, and what helps; a CID of one's own choice is tried anyway."""
    done = alcove("forward", "8000")
    assert done.returncode == 1
    assert "modprobe vsock_loopback" in done.stderr
