"""What asks a web server in these tests: one page, or pages without a pause."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

PATIENCE: Final = 60.0
T = TypeVar("T")


def eventually(condition: Callable[[], object], what: str = "it did not happen") -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def page(port: int, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, *, seconds: float = PATIENCE) -> bytes:
    """The server's certificate, DER, after a whole page over a new connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port), seconds) as plain, context.wrap_socket(plain) as secure:
        secure.sendall(b"GET / HTTP/1.0\r\n\r\n")
        text = b""
        while chunk := secure.recv(4096):
            text += chunk
        assert text.endswith(b"hello")
        return secure.getpeercert(binary_form=True) or b""


@contextmanager
def clients_without_a_pause(get: Callable[[], T], clients: int = 2) -> Iterator[list[T]]:
    """So many clients that call `get` until the block ends, and what they got; none of them may fail."""
    stop, failures, seen = threading.Event(), list[str](), list[T]()

    def load() -> None:
        while not stop.is_set():
            try:
                seen.append(get())
            except (OSError, AssertionError) as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=load) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
