"""Serve HTTP on the enclave's loopback: a thread a connection, as many as are allowed and no more.

Threads, not asyncio: what is behind blocks (the NSM, TLS to KMS), and asyncio alone costs a guest under emulation a
second at start.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from alcove.errors import MachineError, UsageError
from alcove.sdk.servers.request import BadRequestError, Request, RequestReader, Response

MAX_CONNECTIONS: Final = 64
REQUEST_SECONDS: Final = 30.0  # from the first byte of a request to its last
IDLE_SECONDS: Final = 75.0  # between requests; AWS's SDKs keep a connection for some 5 to 60
_CHUNK: Final = 65536
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

Handler = Callable[[Request], Response]


class HttpServer:
    """Listens on loopback; `serve` in a thread, or with `serving()` beside other work.

    Args:
        handler: Answers a request. It must not raise; called from several threads.
        host: A loopback address.
        port: 0 takes a free one.

    Raises:
        UsageError: `host` is not a loopback address, for what is served is for this enclave alone; or there is no such
            port.
        MachineError: The address is taken.
    """

    def __init__(self, handler: Handler, host: str = "127.0.0.1", port: int = 0) -> None:
        if not _is_loopback(host):
            raise UsageError(f"{host} is not a loopback address", hint="use 127.0.0.1: this is for the enclave alone")
        if not 0 <= port <= 0xFFFF:
            raise UsageError(f"there is no TCP port {port}")
        self._handler = handler
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((host, port))
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise MachineError(f"cannot listen on {host} port {port}: {error.strerror}") from None
        self.port: Final[int] = self._listener.getsockname()[1]
        self.url: Final = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def serve(self) -> None:
        """Serve until `close`; connections beyond the limit wait to be accepted."""
        while True:
            self._slots.acquire()
            try:
                stream, _ = self._listener.accept()
            except OSError:
                self._slots.release()
                if self._listener.fileno() < 0:
                    return
                time.sleep(0.1)  # out of descriptors: connections that end give some back
                continue
            threading.Thread(target=self._connection, args=(stream,), daemon=True).start()

    def close(self) -> None:
        """End; connections end with the process."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Serve from a thread for the block, which gets the URL."""
        thread = threading.Thread(target=self.serve, daemon=True)
        thread.start()
        try:
            yield self.url
        finally:
            self.close()
            thread.join()

    def _connection(self, stream: socket.socket) -> None:
        try:
            with stream, contextlib.suppress(OSError):
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._talk(stream)
        finally:
            self._slots.release()

    def _talk(self, stream: socket.socket) -> None:
        reader = RequestReader()
        keep_alive = True
        while keep_alive:
            try:
                request = _read(stream, reader)
            except BadRequestError as error:
                answer = Response(400, f"{error}\n".encode(), "text/plain")
                stream.sendall(answer.encode(keep_alive=False))
                return
            if request is None:
                return
            keep_alive = request.keep_alive
            stream.settimeout(REQUEST_SECONDS)
            stream.sendall(self._handler(request).encode(keep_alive=keep_alive))


def _read(stream: socket.socket, reader: RequestReader) -> Request | None:
    """The next request; None when the peer is done. Raises TimeoutError, an OSError, for a peer that is too slow."""
    deadline: float | None = None
    while (request := reader.next_request()) is None:
        if reader.expects_continue:
            stream.sendall(_CONTINUE)
            reader.expects_continue = False
        if deadline is None and not reader.untouched:
            deadline = time.monotonic() + REQUEST_SECONDS
        left = IDLE_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        stream.settimeout(left)
        data = stream.recv(_CHUNK)
        if not data:
            return None
        reader.receive(data)
    return request


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
