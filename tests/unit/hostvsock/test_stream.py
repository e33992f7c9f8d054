"""`alcove connect` underneath: streams to a hybrid socket, and input and output over them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alcove.hostvsock import stream

Server = Callable[[socket.socket], None]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Server], Path]]:
    """Starts a hybrid socket that hands each client, after its command, to a function."""
    listeners = []

    def serve(server: Server) -> Path:
        path = tmp_path / "v"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    line = b""
                    while not line.endswith(b"\n"):
                        line += client.recv(1)
                    assert line == b"CONNECT 5000\n"
                    server(client)

        threading.Thread(target=run, daemon=True).start()
        return path

    yield serve
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def attach(opened: socket.socket, given: bytes | None) -> bytes:
    """Attach with that input, or with one that never ends; what came out."""
    reader, writer = os.pipe()
    if given is not None:
        os.write(writer, given)
        os.close(writer)
    heard = bytearray()
    stream.attach(opened, reader, heard.extend)
    if given is None:
        os.close(writer)
    return bytes(heard)


def test_half_close_works_both_ways(serve: Callable[[Server], Path]) -> None:
    """The enclave hears our end and answers then; or ends first and hears the rest of ours."""

    def answer_at_the_end(client: socket.socket) -> None:
        client.sendall(b"OK 7\nfirst ")
        heard = b""
        while chunk := client.recv(100):
            heard += chunk
        client.sendall(heard.upper())

    path = serve(answer_at_the_end)
    assert attach(stream.connect(path, 5000), b"question") == b"first QUESTION"


def test_input_goes_on_when_the_enclave_has_said_all(serve: Callable[[Server], Path]) -> None:
    """An enclave that has sent its end still gets everything."""
    heard = bytearray()
    done = threading.Event()

    def read_on(client: socket.socket) -> None:
        client.sendall(b"OK 7\nall")
        client.shutdown(socket.SHUT_WR)
        while chunk := client.recv(1 << 16):
            heard.extend(chunk)
        done.set()

    opened = stream.connect(serve(read_on), 5000)
    reader, writer = os.pipe()
    said = bytearray()
    attached = threading.Thread(target=stream.attach, args=(opened, reader, said.extend))
    attached.start()
    time.sleep(0.1)
    os.write(writer, b"late")
    os.close(writer)
    assert done.wait(60)
    attached.join(60)
    assert not attached.is_alive()
    assert (bytes(said), bytes(heard)) == (b"all", b"late")


def test_an_enclave_that_hangs_up_ends_it(serve: Callable[[Server], Path]) -> None:
    """Also while our own input goes on."""
    path = serve(lambda client: client.sendall(b"OK 7\nbye"))
    assert attach(stream.connect(path, 5000), None) == b"bye"


def test_refusals(serve: Callable[[Server], Path], tmp_path: Path) -> None:
    """A closed socket, a strange answer and a missing file are connection errors; nothing hangs."""
    answers = iter([b"", b"NO\n", b"OK 123456789012345678901234567890\n"])
    path = serve(lambda client: client.sendall(next(answers)))
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            stream.connect(path, 5000)
    with pytest.raises(FileNotFoundError):
        stream.connect(tmp_path / "none", 5000)


def test_waiting_for_an_enclave_that_boots(serve: Callable[[Server], Path]) -> None:
    """Refusals are tried again until the time is over; without time there is one attempt."""
    answers = iter([b"", b"", b"OK 1\n", b""])
    attempts = []

    def answer(client: socket.socket) -> None:
        attempts.append(1)
        client.sendall(next(answers))

    path = serve(answer)
    stream.persist(lambda: stream.connect(path, 5000), 30).close()
    assert len(attempts) == 3
    with pytest.raises(ConnectionRefusedError):
        stream.persist(lambda: stream.connect(path, 5000), 0)
    assert len(attempts) == 4
