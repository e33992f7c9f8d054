"""vsock between real kernels: an enclave that runs benchmarks/vsock_load.c, and this process as its parent."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from benchmarks.process import FailedError
from benchmarks.vsock_parent import CHUNK, ECHO, LoadEnclave, build_load_image, pattern

pytest.importorskip("ziglang", reason="the program in the enclave is compiled by ziglang, of the dev group")

STREAMS = 48
EACH = 192 * 1024  # bytes a stream


@pytest.fixture(scope="module")
def load(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadEnclave]:
    """The enclave, shared by all tests here."""
    image = build_load_image(tmp_path_factory.mktemp("load"), cli.environment)
    started = cli.run_enclave(image, "--debug-mode")
    yield LoadEnclave(cli.run_directory, started)
    cli.terminate(started)


def echo(load: LoadEnclave, data: bytes) -> bytes:
    """What comes back after the end of `data` was announced with a half-close."""
    with load.connect(ECHO) as sock:
        writer = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        writer.start()
        back = b"".join(iter(lambda: sock.recv(CHUNK), b""))
        writer.join()
        return back


def test_many_streams_carry_bytes_both_ways_and_half_close(load: LoadEnclave) -> None:
    """48 at once: each sends while it receives, ends its own direction, and then gets the rest, unchanged."""
    data = [os.urandom(EACH) for _ in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        backs = list(pool.map(lambda part: echo(load, part), data))
    assert [hashlib.sha256(back).digest() for back in backs] == [hashlib.sha256(part).digest() for part in data]


def test_many_streams_of_the_guest_arrive_whole(load: LoadEnclave) -> None:
    """The guest connects them; every byte is where it belongs, and our end lets the guest finish."""
    listener = load.listen(9100)

    def read(_: int) -> bool:
        sock, _peer = listener.accept()
        with sock:
            data = b"".join(iter(lambda: sock.recv(CHUNK), b""))
        return data == b"".join(pattern(at, min(CHUNK, EACH - at)) for at in range(0, EACH, CHUNK))

    with listener, ThreadPoolExecutor(STREAMS) as pool:
        results = pool.map(read, range(STREAMS))
        assert load.ask("out", 9100, STREAMS, 10_000, EACH).count == STREAMS * EACH
        assert all(results)


def test_many_streams_to_the_guest_arrive_whole(load: LoadEnclave) -> None:
    """The guest reads each to its end, in calls of all sizes."""
    for size in (CHUNK, 1000):
        assert load.command("in", streams=STREAMS, size=size, amount=EACH).count == STREAMS * EACH


def test_small_packets_to_a_slow_reader_do_not_reset_the_connection(load: LoadEnclave) -> None:
    """Thousands of one-byte writes to a reader that writes each back: the second limit of new guest kernels is kept."""
    with load.connect(ECHO) as sock:
        for number in range(3000):
            sock.sendall(bytes([number & 0xFF]))
        sock.shutdown(socket.SHUT_WR)
        back = b"".join(iter(lambda: sock.recv(CHUNK), b""))
    assert back == bytes(number & 0xFF for number in range(3000))


@pytest.mark.parametrize(
    ("cid", "kind", "port", "refusal"),
    [
        (3, socket.SOCK_STREAM, 9999, errno.ECONNRESET),  # nobody listens
        (1000, socket.SOCK_STREAM, 9100, errno.ECONNRESET),  # another enclave, be there one or not
        (3, socket.SOCK_SEQPACKET, 9100, None),
    ],
    ids=["no listener", "enclave to enclave", "seqpacket"],
)
def test_what_is_not_offered_is_refused_at_once(
    load: LoadEnclave, cid: int, kind: int, port: int, refusal: int | None
) -> None:
    """connect() fails well before its two seconds are over."""
    with load.listen(9100):
        answer = load.ask("errno", port, cid, kind, 0)
    assert answer.count not in {0, errno.ETIMEDOUT}
    assert refusal in {None, answer.count}
    assert answer.seconds < 2


def test_a_listener_that_dies_in_the_middle_ends_its_streams_alone(load: LoadEnclave) -> None:
    """The guest's writer gets an error instead of waiting, other streams go on, and the next one is served."""
    with load.connect(ECHO) as other:
        listener = load.listen(9100)

        def die() -> None:
            sock, _ = listener.accept()
            sock.recv(CHUNK)
            sock.close()
            listener.close()
            (load.run / "vsock" / "9100.sock").unlink()

        killer = threading.Thread(target=die)
        killer.start()
        with pytest.raises(FailedError, match="did not finish"):
            load.ask("out", 9100, 1, CHUNK, 64 << 20)
        killer.join()
        other.sendall(b"still here")
        assert other.recv(100) == b"still here"
    assert load.command("out", streams=1, size=CHUNK, amount=EACH).count == EACH


def test_a_reader_that_stands_still_holds_up_nobody_else(load: LoadEnclave) -> None:
    """While the parent does not read one bulk stream, a byte goes to and fro on another."""
    with load.listen(9100) as listener, ThreadPoolExecutor(1) as pool:
        bulk = pool.submit(load.ask, "out", 9100, 1, CHUNK, 4 << 20)
        sock, _ = listener.accept()
        assert echo(load, b"x") == b"x"
        assert not bulk.done()
        while sock.recv(CHUNK):
            pass
        sock.close()
        assert bulk.result(60).count == 4 << 20


def test_connections_leave_nothing_behind(load: LoadEnclave) -> None:
    """The supervisor has as many descriptors after many connections as before."""

    def descriptors() -> int:
        return len(list(Path(f"/proc/{load.supervisor}/fd").iterdir()))

    assert echo(load, b"x") == b"x"
    time.sleep(0.5)  # what earlier tests left is closed
    before = descriptors()
    for _ in range(30):
        assert echo(load, b"x" * 5000) == b"x" * 5000
    deadline = time.monotonic() + 60
    while descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert descriptors() <= before
