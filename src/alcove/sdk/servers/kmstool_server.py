"""Serve kmstool-enclave's protocol on a listening socket: a thread a connection, within limits."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from alcove.sdk.servers.kmstool import Conversation, Framer, MessageTooLargeError, encode, error

MAX_CONNECTIONS: Final = 16  # upstream serves one: a parent's program that hangs would shut the others out
IDLE_SECONDS: Final = 120.0
_CHUNK: Final = 8192


def serve(listener: socket.socket, begin: Callable[[], Conversation]) -> None:
    """Serve until the listener is shut down; connections beyond the limit wait.

    Args:
        listener: Listens; of any family.
        begin: Makes the conversation of a connection.
    """
    slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
    while True:
        slots.acquire()
        try:
            stream, _ = listener.accept()
        except OSError:
            slots.release()
            if listener.fileno() < 0 or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return
            time.sleep(0.1)  # out of descriptors: connections that end give some back
            continue
        threading.Thread(target=_connection, args=(stream, begin(), slots), daemon=True).start()


def _connection(stream: socket.socket, conversation: Conversation, slots: threading.BoundedSemaphore) -> None:
    try:
        with stream, contextlib.suppress(OSError):
            stream.settimeout(IDLE_SECONDS)
            _talk(stream, conversation)
    finally:
        slots.release()


def _talk(stream: socket.socket, conversation: Conversation) -> None:
    framer = Framer()
    while data := stream.recv(_CHUNK):
        try:
            for message in framer.receive(data):
                stream.sendall(encode(conversation.answer(message)))
        except MessageTooLargeError:
            stream.sendall(encode(error("Message size too large.")))
            return
