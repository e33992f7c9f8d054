"""The back-end's side of a vhost-user connection (devices.md §3).

Core: bytes and descriptor numbers in, events out, bytes to send.

    session.receive_data(chunk, fds)
    for event in session.events():   # act on each before taking the next
        ...
    sock.sendall(session.data_to_send())

Rules:

1. Messages are taken one at a time: the acknowledgement of a message is queued when the loop asks for the next event,
   so it never precedes what the event made the caller do.
2. On `VringStopped` the caller has to call `answer_vring_base` before it takes the next event.
3. A descriptor belongs to whoever receives it in an event; those that no message wants come in `UnusedDescriptors`.
4. After a ProtocolError the session is over.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Final

from alcove.devices.vhost_user import messages as wire
from alcove.devices.vhost_user.events import (
    Event,
    FeaturesSet,
    MemoryTable,
    Skipped,
    UnusedDescriptors,
    VringAddress,
    VringBase,
    VringCall,
    VringEnabled,
    VringKick,
    VringSize,
    VringStopped,
)
from alcove.devices.vhost_user.messages import Feature, Header, ProtocolFeature, Request
from alcove.errors import ProtocolError

ACK_FAILED: Final = 1  # vhost-user.rst: "non-zero in case of failure"


class Session:
    """One connection, seen from the device.

    Args:
        features: Virtio features to offer; VHOST_USER_PROTOCOL must be among them (§3.3).
        protocol_features: Protocol features to offer.
        queues: The answer to GET_QUEUE_NUM, and the bound of every ring index.
        config: The device's configuration space.
    """

    def __init__(
        self, *, features: Feature, protocol_features: ProtocolFeature, queues: int, config: bytes = b""
    ) -> None:
        self._offered = features
        self._offered_protocol = protocol_features
        self._queues = queues
        self._config = config
        self._features = 0
        self._protocol = 0
        self._received = bytearray()
        self._fds: list[int] = []
        self._outgoing = bytearray()
        self._awaiting_base: int | None = None

    def receive_data(self, chunk: bytes, fds: Sequence[int] = ()) -> None:
        """Take what one `recvmsg` returned; descriptors belong to the message that the chunk begins or continues.

        Raises:
            ProtocolError: One message has more descriptors than any has; they are among `abandoned`.
        """
        self._received += chunk
        self._fds += fds
        if len(self._fds) > wire.MAX_REGIONS:
            raise ProtocolError(f"vhost-user: {len(self._fds)} descriptors with one message")

    def wanted(self) -> int:
        """Bytes to the end of the current header or payload: read no more, and descriptors stay with their message."""
        have = len(self._received)
        if have < wire.HEADER.size:
            return wire.HEADER.size - have
        size: int = wire.HEADER.unpack_from(self._received)[2]
        return wire.HEADER.size + size - have

    def data_to_send(self) -> bytes:
        """What to write to the front-end; each byte is returned once."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def events(self) -> Iterator[Event]:
        """What the complete messages received so far mean.

        Raises:
            ProtocolError: The front-end broke the protocol.
        """
        while len(self._received) >= wire.HEADER.size:
            header = Header.parse(bytes(self._received[: wire.HEADER.size]))
            end = wire.HEADER.size + header.size
            if len(self._received) < end:
                return
            payload = bytes(self._received[wire.HEADER.size : end])
            del self._received[:end]
            yield from self._message(header, payload)
            yield from self._leftovers()

    def answer_vring_base(self, base: int) -> None:
        """Answer GET_VRING_BASE with the next index that would have been read."""
        if self._awaiting_base is None:
            raise RuntimeError("no GET_VRING_BASE to answer")
        self._reply(Request.GET_VRING_BASE, wire.VRING_STATE.pack(self._awaiting_base, base))
        self._awaiting_base = None

    def abandoned(self) -> tuple[int, ...]:
        """Descriptors that no event has handed over, to be closed when the session ends."""
        fds, self._fds = tuple(self._fds), []
        return fds

    def _leftovers(self) -> Iterator[Event]:
        if self._fds:
            yield UnusedDescriptors(self.abandoned())

    def _message(self, header: Header, payload: bytes) -> Iterator[Event]:
        try:
            answer = self._ANSWERS.get(header.request)
            if answer is not None:
                self._reply(header.request, answer(self, payload))
                return
            handler = self._HANDLERS.get(header.request)
            yield from handler(self, payload) if handler else (Skipped(header.request),)
        except struct.error:
            raise ProtocolError(f"vhost-user: request {header.request} with {header.size} bytes") from None
        if header.request == Request.GET_VRING_BASE:
            if self._awaiting_base is not None:
                raise RuntimeError("GET_VRING_BASE was not answered")
        elif header.need_reply and self._protocol & ProtocolFeature.REPLY_ACK:
            self._reply(header.request, wire.U64.pack(0 if handler else ACK_FAILED))

    def _reply(self, request: int, payload: bytes) -> None:
        self._outgoing += wire.pack_message(request, payload, flags=wire.REPLY)

    # requests that have a reply of their own

    def _get_features(self, _payload: bytes) -> bytes:
        return wire.U64.pack(self._offered)

    def _get_protocol_features(self, _payload: bytes) -> bytes:
        return wire.U64.pack(self._offered_protocol)

    def _get_queue_num(self, _payload: bytes) -> bytes:
        return wire.U64.pack(self._queues)

    def _get_config(self, payload: bytes) -> bytes:
        offset, size, flags = wire.CONFIG.unpack_from(payload)
        if offset + size > len(self._config):
            raise ProtocolError(f"vhost-user: configuration bytes {offset}+{size} of {len(self._config)}")
        return wire.CONFIG.pack(offset, size, flags) + self._config[offset : offset + size]

    # requests that mean something to the caller

    def _set_owner(self, _payload: bytes) -> Iterator[Event]:
        yield from ()

    def _set_features(self, payload: bytes) -> Iterator[Event]:
        (features,) = wire.U64.unpack(payload)
        if features & ~self._offered:
            raise ProtocolError(f"vhost-user: features {features:#x} were not all offered")
        self._features = features
        yield FeaturesSet(features)

    def _set_protocol_features(self, payload: bytes) -> Iterator[Event]:
        (features,) = wire.U64.unpack(payload)
        if features & ~self._offered_protocol:
            raise ProtocolError(f"vhost-user: protocol features {features:#x} were not all offered")
        self._protocol = features
        yield from ()

    def _set_mem_table(self, payload: bytes) -> Iterator[Event]:
        regions = wire.parse_regions(payload)
        if len(self._fds) != len(regions):
            raise ProtocolError(f"vhost-user: {len(self._fds)} descriptors for {len(regions)} memory regions")
        fds, self._fds = tuple(self._fds), []
        yield MemoryTable(regions, fds)

    def _set_vring_num(self, payload: bytes) -> Iterator[Event]:
        index, size = wire.VRING_STATE.unpack(payload)
        yield VringSize(self._ring(index), size)

    def _set_vring_addr(self, payload: bytes) -> Iterator[Event]:
        index, _flags, descriptors, used, available, _log = wire.VRING_ADDRESS.unpack(payload)
        yield VringAddress(self._ring(index), descriptors, available, used)

    def _set_vring_base(self, payload: bytes) -> Iterator[Event]:
        index, base = wire.VRING_STATE.unpack(payload)
        if base > 0xFFFF:
            raise ProtocolError(f"vhost-user: ring index {base} has more than 16 bits")
        yield VringBase(self._ring(index), base)

    def _get_vring_base(self, payload: bytes) -> Iterator[Event]:
        index, _ = wire.VRING_STATE.unpack(payload)
        self._awaiting_base = self._ring(index)
        yield VringStopped(index)

    def _set_vring_kick(self, payload: bytes) -> Iterator[Event]:
        index, fd = self._ring_descriptor(payload)
        yield VringKick(index, fd)
        if not self._features & Feature.VHOST_USER_PROTOCOL:
            yield VringEnabled(index, enabled=True)  # §3.6 rule 1: without bit 30 rings start enabled

    def _set_vring_call(self, payload: bytes) -> Iterator[Event]:
        yield VringCall(*self._ring_descriptor(payload))

    def _set_vring_err(self, payload: bytes) -> Iterator[Event]:
        _, fd = self._ring_descriptor(payload)
        yield UnusedDescriptors(() if fd is None else (fd,))

    def _set_vring_enable(self, payload: bytes) -> Iterator[Event]:
        index, enabled = wire.VRING_STATE.unpack(payload)
        yield VringEnabled(self._ring(index), bool(enabled))

    def _ring(self, index: int) -> int:
        if index >= self._queues:
            raise ProtocolError(f"vhost-user: ring {index} of {self._queues}")
        return index

    def _ring_descriptor(self, payload: bytes) -> tuple[int, int | None]:
        (value,) = wire.U64.unpack(payload)
        index = self._ring(value & wire.INDEX_MASK)
        if value & wire.NO_DESCRIPTOR:
            return index, None
        if not self._fds:
            raise ProtocolError(f"vhost-user: ring {index} without its descriptor")
        return index, self._fds.pop(0)

    _ANSWERS: ClassVar[dict[int, Callable[[Session, bytes], bytes]]] = {
        Request.GET_FEATURES: _get_features,
        Request.GET_PROTOCOL_FEATURES: _get_protocol_features,
        Request.GET_QUEUE_NUM: _get_queue_num,
        Request.GET_CONFIG: _get_config,
    }
    _HANDLERS: ClassVar[dict[int, Callable[[Session, bytes], Iterator[Event]]]] = {
        Request.SET_OWNER: _set_owner,
        Request.RESET_OWNER: _set_owner,
        Request.SET_FEATURES: _set_features,
        Request.SET_PROTOCOL_FEATURES: _set_protocol_features,
        Request.SET_MEM_TABLE: _set_mem_table,
        Request.SET_VRING_NUM: _set_vring_num,
        Request.SET_VRING_ADDR: _set_vring_addr,
        Request.SET_VRING_BASE: _set_vring_base,
        Request.GET_VRING_BASE: _get_vring_base,
        Request.SET_VRING_KICK: _set_vring_kick,
        Request.SET_VRING_CALL: _set_vring_call,
        Request.SET_VRING_ERR: _set_vring_err,
        Request.SET_VRING_ENABLE: _set_vring_enable,
    }
