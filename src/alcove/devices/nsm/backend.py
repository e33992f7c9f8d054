"""The NSM as a vhost-user device for QEMU (devices.md §3.4)."""

from __future__ import annotations

import socket
from typing import Final

from alcove.devices.nsm.exchange import serve_one
from alcove.devices.nsm.module import NsmModule
from alcove.devices.reactor import Reactor
from alcove.devices.vhost_user.messages import Feature, ProtocolFeature
from alcove.devices.vhost_user.server import OnClosed, VhostUserServer
from alcove.devices.vhost_user.session import Session

_BATCH: Final = 16  # exchanges per wake-up: a flood must not starve the devices that share the loop (devices.md §4.1)


class NsmBackend:
    """Serve a module to one QEMU.

    Args:
        reactor: The event loop.
        listener: A listening Unix socket that QEMU connects to; the caller closes it.
        module: The module.
        on_closed: Called once when the device ends by itself.

    Attributes:
        requests: How many requests were answered.
    """

    def __init__(self, reactor: Reactor, listener: socket.socket, module: NsmModule, on_closed: OnClosed) -> None:
        self._reactor = reactor
        self._module = module
        self.requests = 0
        session = Session(
            features=Feature.VERSION_1 | Feature.VHOST_USER_PROTOCOL,
            protocol_features=ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK,
            queues=1,
        )
        self._server = VhostUserServer(
            reactor,
            listener,
            session,
            rings=1,
            on_ring=self._serve,
            on_started=lambda _index, _base: None,
            on_closed=on_closed,
        )

    def close(self) -> None:
        """Let go of QEMU; no callback follows."""
        self._server.close()

    def _serve(self, index: int) -> None:
        queue = self._server.queue(index)
        if queue is None:
            return
        for _ in range(_BATCH):
            if not serve_one(queue, self._module.handle):
                self._server.publish(index)
                return
            self.requests += 1
            self._server.publish(index)
        self._reactor.call_soon(self._server.guard, self._serve, index)
