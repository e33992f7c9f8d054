"""Sends requests that were signed before over a few connections, one in flight on each, and says how that went.

So little is done between an answer and the next request that the server is what is measured. Run as a program, for the
processor time of its own that a thread would not have:

    python -m benchmarks.kms_load 127.0.0.1:4599 FILE 8 5        requests of FILE, 8 connections, 5 seconds

FILE holds requests, each after its length (u32, big-endian), and is gone through again and again. A server that closes
after an answer is connected to again. The result is one JSON object on standard output.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

_LENGTH = struct.Struct(">I")
_PATIENCE = 10.0  # seconds for an answer


def pack(requests: Sequence[bytes]) -> bytes:
    """Requests as a file of them."""
    return b"".join(_LENGTH.pack(len(request)) + request for request in requests)


def unpack(data: bytes) -> Iterator[bytes]:
    """The requests of a file."""
    place = 0
    while place < len(data):
        (size,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        yield data[place : place + size]
        place += size


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of ordered values lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass(slots=True)
class _Connection:
    """One connection with the request that is in flight on it."""

    address: tuple[str, int]
    sock: socket.socket = field(init=False)
    started: float = 0.0
    received: bytes = b""

    def open(self) -> None:
        self.sock = socket.create_connection(self.address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> None:
        self.received = b""
        self.started = time.perf_counter()
        self.sock.sendall(request)

    def take(self) -> bytes | None:
        """The answer, when it is whole; what a server sends that closes after it is whole when it closes."""
        chunk = self.sock.recv(262_144)
        self.received += chunk
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator:
            if not chunk:
                raise ConnectionResetError("closed without an answer")
            return None
        lower = head.lower()
        place = lower.find(b"content-length:")
        size = int(lower[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else -1
        return self.received if len(body) == size or not chunk else None


def load(address: tuple[str, int], requests: Sequence[bytes], connections: int, seconds: float) -> dict[str, Any]:
    """Sends until the time is over; counts answers, those that are not 200, and how long they took."""
    supply, poller = cycle(requests), select.epoll()
    live: dict[int, _Connection] = {}
    for _ in range(connections):
        _start(_Connection(address), live, poller, next(supply))
    times: list[float] = []
    failures: dict[str, int] = {}
    begin = time.perf_counter()
    end = begin + seconds
    now = begin
    while now < end:
        if time.perf_counter() > now + _PATIENCE:
            raise TimeoutError("no answer")
        for number, _ in poller.poll(0):  # it never sleeps, so that the server need not wake it up
            connection = live[number]
            answer = connection.take()
            if answer is None:
                continue
            now = time.perf_counter()
            times.append(now - connection.started)
            if answer[9:12] != b"200":
                text = answer[:300].decode(errors="replace")
                failures[text] = failures.get(text, 0) + 1
            if b"\r\nconnection: close" in answer.partition(b"\r\n\r\n")[0].lower() or answer.startswith(b"HTTP/1.0"):
                poller.unregister(number)
                del live[number]
                connection.sock.close()
                _start(connection, live, poller, next(supply))
            else:
                connection.send(next(supply))
    for connection in live.values():
        connection.sock.close()
    ordered = sorted(times)
    return {
        "requests": len(times),
        "seconds": now - begin,
        "failed": sum(failures.values()),
        "example": next(iter(failures), ""),
        "p50": percentile(ordered, 0.5),
        "p99": percentile(ordered, 0.99),
        "max": ordered[-1],
    }


def _start(connection: _Connection, live: dict[int, _Connection], poller: select.epoll, request: bytes) -> None:
    connection.open()
    live[connection.sock.fileno()] = connection
    poller.register(connection.sock.fileno(), select.EPOLLIN)
    connection.send(request)


if __name__ == "__main__":
    where, file, count, duration = sys.argv[1:]
    host, _, port = where.rpartition(":")
    found = load((host, int(port)), list(unpack(Path(file).read_bytes())), int(count), float(duration))
    sys.stdout.write(json.dumps(found))
