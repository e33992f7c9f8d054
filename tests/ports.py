"""Ports of the loopback, for servers that have to be told theirs."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A port that nobody has now; below those that the kernel gives to outgoing connections, so that none takes it."""
    while True:
        port = random.randrange(10000, 32000)  # noqa: S311 - no secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
