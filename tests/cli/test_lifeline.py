"""`alcove logs`, `health` and `terminate-enclave` with an enclave that has a lifeline; the guest is left out."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alcove.enclave import registry
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record

ALCOVE = Path(sys.executable).parent / "alcove"
ENCLAVE = "i-0123456789abcdef0-enc0123456789abcdef"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A runtime directory of the test's own, for this process too."""
    with tempfile.TemporaryDirectory(prefix="ll-") as name:
        yield {**os.environ, "ALCOVE_RUN": f"{name}/run"}


@contextmanager
def enclave(environment: dict[str, str], answers: dict[bytes, bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A registered enclave outside debug mode, whose supervisor is a program that waits; yields that program."""
    paths = Paths.from_environment(environment)
    with subprocess.Popen(["sleep", "600"]) as supervisor:
        record = Record(ENCLAVE, "web", 16, (0,), 64, supervisor.pid, debug_mode=False)
        _, lock = registry.reserve(paths, ENCLAVE, lambda _: record)
        listener = socket.create_server(str(paths.enclave(ENCLAVE).vsock), family=socket.AF_UNIX)

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client, client.makefile("rb") as lines:
                    if lines.readline() != b"CONNECT 9041\n":
                        continue
                    client.sendall(b"OK 1\n")
                    word = lines.readline().strip()
                    client.sendall(answers.get(word, b""))
                    if word == b"stop":
                        lock.close()
                        supervisor.terminate()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield supervisor
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            lock.close()
            supervisor.kill()


def alcove(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [ALCOVE, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert "Traceback" not in done.stderr
    return done


def test_the_log_of_an_enclave_whose_image_shows_it(environment: dict[str, str]) -> None:
    """`logs` prints what was kept, and with -f goes on to the end."""
    with enclave(environment, {b"tail": b"kept\n", b"log": b"kept\nand more\n"}):
        assert alcove(environment, "logs", "web").stdout == "kept\n"
        assert alcove(environment, "logs", "web", "-f").stdout == "kept\nand more\n"


@pytest.mark.parametrize(
    ("said", "status", "shown"),
    [
        (b'{"state": "running", "health": "healthy"}\n', 0, '{"state": "running", "health": "healthy"}\n'),
        (b'{"state": "running", "health": null, "x": 1}\n', 0, '{"state": "running", "health": null}\n'),
        (b'{"state": "running", "health": "unhealthy"}\n', 1, '{"state": "running", "health": "unhealthy"}\n'),
        (b"\x1b[2J nonsense\n", 1, ""),
        (b'{"state": "\\u001b[2J", "health": null}\n', 1, ""),
    ],
)
def test_health_is_a_status(environment: dict[str, str], said: bytes, status: int, shown: str) -> None:
    """0 unless it is unhealthy; nothing of what an enclave says beyond that reaches a terminal."""
    with enclave(environment, {b"status": said}):
        done = alcove(environment, "health", "web")
    assert (done.returncode, done.stdout) == (status, shown)


def test_an_enclave_without_a_lifeline_says_nothing(environment: dict[str, str]) -> None:
    """One line and a hint; an unknown enclave is E58."""
    with enclave(environment, {}):
        done = alcove(environment, "health", "web")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("alcove: error: the enclave `web` does not say how it fares\nhint: ")
    assert alcove(environment, "health", "other").returncode == 58


def test_terminate_asks_first(environment: dict[str, str]) -> None:
    """The application gets its signal and ends the enclave by itself, within its grace."""
    with enclave(environment, {b"stop": b'{"stopping": true}\n'}) as supervisor:
        done = alcove(environment, "terminate-enclave", "--enclave-name", "web", "--grace", "60")
        assert done.returncode == 0, done.stderr
        assert '"Terminated": true' in done.stdout
        assert supervisor.wait(30) == -signal.SIGTERM
    assert alcove(environment, "terminate-enclave", "--all", "--grace", "-1").returncode == 2
