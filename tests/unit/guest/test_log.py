"""What init does with callers of the log: the real source, compiled, around sockets of the test's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

GUEST = Path(__file__).parents[3] / "src/alcove/guest"
KEPT = 128 * 1024
CALLERS = 32
SECONDS = 60


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """log.c with a main of the tests' own (harness_log.c)."""
    made = tmp_path_factory.mktemp("log") / "harness"
    flags = ["-std=gnu17", "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=all", f"-I{GUEST}"]
    source = Path(__file__).with_name("harness_log.c")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", *flags, "-o", made, source]
    subprocess.run(command, check=True)
    return made


class Log:
    """A running log: the application's end of it, and callers."""

    def __init__(self, program: Path, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack
        listener = stack.enter_context(socket.create_server(str(path), family=socket.AF_UNIX, backlog=1024))
        listener.setblocking(False)
        output, self.application = os.pipe()
        end, self._end = os.pipe()
        self.console = path.with_name("console")
        with self.console.open("wb") as console:
            descriptors = (listener.fileno(), end)
            command = [program, *map(str, descriptors)]
            self.process = subprocess.Popen(
                command, stdin=output, stdout=console, pass_fds=descriptors, cwd=path.parent
            )
        os.close(output)
        os.close(end)
        stack.callback(self.process.wait, SECONDS)
        stack.callback(self.process.kill)

    def write(self, data: bytes) -> None:
        """The application writes."""
        while data:
            data = data[os.write(self.application, data) :]

    def call(self, line: bytes) -> socket.socket:
        """A caller."""
        stream = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        stream.settimeout(SECONDS)
        stream.connect(str(self._path))
        stream.sendall(line)
        return stream

    def end(self) -> None:
        """The application has ended."""
        os.close(self.application)
        os.close(self._end)


@pytest.fixture
def log(program: Path, tmp_path: Path) -> Iterator[Log]:
    """A log that runs."""
    with ExitStack() as stack:
        yield Log(program, tmp_path / "s", stack)


def everything(stream: socket.socket) -> bytes:
    return stream.makefile("rb").read()


def test_the_log_is_followed_to_its_end(log: Log) -> None:
    """What was said, what comes, and the last words; the console has it all too."""
    log.write(b"early\n")
    following = log.call(b"log\n")
    assert following.recv(100) == b"early\n"
    log.write(b"later\n")
    assert following.recv(100) == b"later\n"
    assert everything(log.call(b"tail\n")) == b"early\nlater\n"
    log.write(b"last words\n")
    log.end()
    assert everything(following) == b"last words\n"
    assert log.process.wait(SECONDS) == 0
    assert log.console.read_bytes() == b"early\nlater\nlast words\n"


def test_the_last_is_kept_and_a_slow_reader_is_told_what_it_missed(log: Log) -> None:
    """The application never waits for a reader."""
    slow = log.call(b"log\n")
    log.write(b"begin\n")
    assert slow.recv(6) == b"begin\n"
    lines = b"".join(b"line %7d of the application\n" % number for number in range(200_000))
    log.write(lines)  # returns although nobody reads
    tail = everything(log.call(b"tail\n"))
    assert len(tail) == KEPT
    log.end()
    heard = everything(slow)
    assert b" bytes are lost]\n" in heard
    assert heard.endswith(b"line  199999 of the application\n")
    assert len(heard) < len(lines)
    assert tail in lines


def test_what_was_said_last_is_handed_to_the_parent(log: Log) -> None:
    """At the end, in order, as much as is kept."""
    place = str(log.console.with_name("last-words"))
    lines = b"".join(b"line %7d of the application\n" % number for number in range(20_000))
    with socket.create_server(place, family=socket.AF_UNIX) as parent:
        parent.settimeout(SECONDS)
        log.write(lines)
        log.end()
        stream, _ = parent.accept()
        with stream:
            assert everything(stream) == lines[-KEPT:]
    assert log.process.wait(SECONDS) == 0


def test_an_empty_log_is_empty(log: Log) -> None:
    """A caller of `tail` is answered at once."""
    assert everything(log.call(b"tail\n")) == b""


@pytest.mark.parametrize("line", [b"\n", b"status\n", b"logs\n", b"log\nlog\n", b"\0" * 8, b"GET / HTTP/1.1\r\n\r\n"])
def test_another_word_is_hung_up_on(log: Log, line: bytes) -> None:
    """And nothing is said to it."""
    log.write(b"a secret\n")
    with suppress(ConnectionResetError):  # its end came before all of its words were read
        assert everything(log.call(line)) == b""
    assert everything(log.call(b"tail\n")) == b"a secret\n"


def test_hostile_callers_do_no_harm(log: Log) -> None:
    """Silence, half a line, early closes, and more callers than there are places: then an ordinary one is served."""
    for _ in range(3 * CALLERS):
        log.call(b"lo").close()
    silent = [log.call(b"") for _ in range(CALLERS)]
    log.write(b"still here\n")
    assert everything(log.call(b"tail\n")) == b"still here\n"  # once the silent have had their time
    assert all(everything(stream) == b"" for stream in silent)
    log.end()
    assert log.process.wait(SECONDS) == 0
