"""`vsock-proxy` as AWS's users run it: its words, its statuses, its signals."""

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
from tests.ports import free_port

PROXY = Path(sys.executable).parent / "vsock-proxy"


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short path, whose `run` is the runtime directory."""
    with tempfile.TemporaryDirectory(prefix="vp-") as name:
        yield Path(name)


@pytest.fixture
def server() -> Iterator[int]:
    """A TCP server that says `hello` to each caller, and waits for its end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def greet(client: socket.socket) -> None:
        with client:
            client.sendall(b"hello")
            client.recv(1)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=greet, args=(client,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "ALCOVE_RUN": str(home / "run")}


@contextmanager
def running(home: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The program, once it says where enclaves reach what."""
    command = [PROXY, *map(str, arguments)]
    with subprocess.Popen(command, env=environment(home), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline().startswith("enclaves reach ")
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=30)


def connect(home: Path, port: int) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(30)
    stream.connect(str(home / "run" / "vsock" / f"{port}.sock"))
    return stream


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-w", "0", "8000", "localhost", "443"), "Number of workers must not be 0"),
        (("-w", "x", "8000", "localhost", "443"), "Number of workers is not valid"),
        (("x", "localhost", "443"), "Local port is not valid"),
        (("8000", "localhost", "65536"), "Remote port is not valid"),
        (("8000", "localhost", "444"), "The given address and port are not allowed"),
    ],
)
def test_awss_errors(home: Path, arguments: tuple[str, ...], message: str) -> None:
    """As AWS's program prints them, with status 1."""
    file = home / "allow.yaml"
    file.write_text("allowlist:\n- {address: localhost, port: 443}\n")
    command = [PROXY, "--config", file, *arguments]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f'Error: "{message}"'


def test_the_metrics_are_where_the_flag_says(home: Path, server: int) -> None:
    """An address may come first, as the help says; a port that is taken, or none, is one line and leaves no socket."""
    file = home / "allow.yaml"
    file.write_text(f"allowlist:\n- {{address: 127.0.0.1, port: {server}}}\n")
    arguments = ("--config", file, 8000, "127.0.0.1", server)
    port = free_port()
    where = f"127.0.0.1:{port}"
    with running(home, *arguments, "--metrics", where), socket.create_connection(("127.0.0.1", port)) as stream:
        stream.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert stream.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    for taken, message in (
        (f"127.0.0.1:{server}", f"cannot listen on 127.0.0.1 port {server}: Address already in use"),
        ("9100:9101", "`9100:9101` is not [ADDRESS:]PORT"),
    ):
        command = [PROXY, *map(str, arguments), "--metrics", taken]
        done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr.splitlines()[0]) == (1, f'Error: "{message}"')
        assert not (home / "run" / "vsock" / "8000.sock").exists()


def test_a_time_to_live_that_is_no_number_is_refused(home: Path) -> None:
    """`nan` is neither more nor less than anything."""
    command = [PROXY, "--dns-ttl", "nan", "8000", "localhost", "443"]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "time to live cannot be" in done.stderr


def test_awss_conflicts_are_usage_errors(home: Path) -> None:
    """-4 with -6, and half of the three arguments: status 2."""
    for arguments in (("-4", "-6", "1", "a", "1"), ("1", "a")):
        done = subprocess.run([PROXY, *arguments], env=environment(home), capture_output=True, check=False, timeout=60)
        assert done.returncode == 2


def test_workers_are_connections_at_a_time(home: Path, server: int) -> None:
    """With `-w 1` the second caller waits in the backlog until the first has gone, as with AWS's program."""
    file = home / "allow.yaml"
    file.write_text(f"allowlist:\n- {{address: 127.0.0.1, port: {server}}}\n")
    started = running(home, "-w", 1, "--config", file, 8000, "127.0.0.1", server)
    with started, connect(home, 8000) as first, connect(home, 8000) as second:
        assert first.recv(100) == b"hello"
        second.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.recv(100)
        first.close()
        second.settimeout(30)
        assert second.recv(100) == b"hello"


def test_sighup_reads_the_file_again(home: Path, server: int) -> None:
    """Without a restart, and without the connections that are open noticing; a bad file is reported and not taken."""
    file = home / "proxy.yaml"
    allow = f"allowlist:\n- {{address: 127.0.0.1, port: {server}}}\nlisteners:\n"
    listener = f"- {{port: %d, address: 127.0.0.1, remote_port: {server}}}\n"
    file.write_text(allow + listener % 8000)
    with running(home, "--config", file) as process:
        assert process.stderr is not None
        with connect(home, 8000) as stream:
            assert stream.recv(100) == b"hello"
            file.write_text("allowlist: 3\n")
            process.send_signal(signal.SIGHUP)
            assert "the file was not taken" in process.stderr.readline()
            file.write_text(allow + listener % 8001)
            process.send_signal(signal.SIGHUP)
            assert process.stderr.readline().endswith("on port 8001\n")
            with connect(home, 8001) as other:
                assert other.recv(100) == b"hello"
            assert not (home / "run" / "vsock" / "8000.sock").exists()
            stream.shutdown(socket.SHUT_WR)
            assert stream.recv(100) == b""
    assert process.returncode == 0
    assert not (home / "run" / "vsock" / "8001.sock").exists()
