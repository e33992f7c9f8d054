"""Fuzz targets of the devices' shells: rings in a hostile guest's memory, and a whole server with its descriptors."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from alcove.devices.nsm.backend import NsmBackend
from alcove.devices.nsm.exchange import serve_one
from alcove.devices.nsm.module import NsmModule
from alcove.devices.vhost_user import messages as wire
from alcove.devices.vhost_user.memory import GuestMemory, Region
from alcove.devices.vhost_user.messages import Feature, RegionSpec, Request
from alcove.devices.virtio.queue import RingLayout, SplitQueue
from alcove.devices.virtio.segments import total
from alcove.errors import ProtocolError
from alcove.testing.step_reactor import StepReactor

USER = 1 << 40
AVAILABLE, USED, END, IMAGE = 0x100, 0x140, 0x1C8, 0x400  # of rings with at most 16 entries; where they end; all memory
GUEST = 1 << 16  # bytes of the server's guest


def virtqueue(data: bytes) -> None:
    """Any rings: bounded chains of what is in memory, and nothing but the used ring is written; or the queue breaks."""
    size, base = 1 << (data[0] % 5 if data else 1), int.from_bytes(data[1:3])
    memory = memoryview(bytearray(data[3 : 3 + IMAGE].ljust(IMAGE, b"\0")))
    guest = GuestMemory([Region(0, USER, memory)])
    queue = SplitQueue(RingLayout(size, USER, USER + AVAILABLE, USER + USED), guest, base)
    before = bytes(memory[:USED]), bytes(memory[END:])
    with suppress(ProtocolError):
        for _ in range(size):
            chain = queue.pop()
            if chain is None:
                break
            assert len(chain.readable) + len(chain.writable) <= size
            assert total(chain.readable) + total(chain.writable) <= size * IMAGE
            queue.push(chain.head, 0)
            queue.publish()
    assert (bytes(memory[:USED]), bytes(memory[END:])) == before
    with suppress(ProtocolError):
        for _ in range(size):
            if not serve_one(queue, lambda request: request[:1] * 30):
                break
            queue.publish()


def server(data: bytes) -> None:
    """Any messages with any descriptors: the device ends at most once, nothing is raised, and nothing stays open."""
    opened = len(list(Path("/proc/self/fd").iterdir()))
    reactor, ended = StepReactor(), list[str | None]()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as front:
        listener.bind("")  # a name that nobody else knows
        listener.listen()
        module = NsmModule("i-0-enc0", {}, lambda *_: b"document", bytes)
        backend = NsmBackend(reactor, listener, module, ended.append)
        front.connect(listener.getsockname())
        front.setblocking(False)
        for message, kinds in _messages(data):
            _send(front, message, kinds)
            reactor.run()
        reactor.fire()
        assert len(ended) <= 1
        backend.close()
        assert not reactor.watched()
    reactor.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def _messages(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Messages and the kinds of their descriptors: four bytes (request, flags, descriptors, length), then these."""
    at = 0
    while at + 4 <= len(data) and at < 4096:
        request, flags, count, length = data[at : at + 4]
        kinds, payload = data[at + 4 : at + 4 + count % 10], data[at + 4 + count % 10 :][:length]
        at += 4 + count % 10 + length
        yield wire.HEADER.pack(request, flags, len(payload)) + payload, kinds


def _send(front: socket.socket, message: bytes, kinds: bytes) -> None:
    fds = [_descriptor(kind) for kind in kinds]
    with suppress(OSError):  # it has hung up
        front.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
        front.recv(1 << 16)
    for fd in fds:
        os.close(fd)


def _descriptor(kind: int) -> int:
    if kind % 4 == 0:
        return os.eventfd(kind & 1, os.EFD_CLOEXEC)
    if kind % 4 == 1:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, GUEST)
    if kind % 4 == 2:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def rings() -> Iterator[bytes]:
    """A chain of two, and an exchange of the NSM."""
    descriptor = struct.Struct("<QIHH").pack
    head = bytes([1]) + bytes(2)
    request = descriptor(0x200, 10, 1, 1) + descriptor(0x300, 0x80, 2, 0)
    yield head + (request.ljust(AVAILABLE, b"\0") + b"\0\0\1\0\0\0").ljust(IMAGE, b"\0")
    pair = descriptor(0x200, 10, 0, 0) + descriptor(0x300, 0x80, 2, 0)
    yield head + (pair.ljust(AVAILABLE, b"\0") + b"\0\0\2\0\0\0\1\0").ljust(IMAGE, b"\0")


def conversations() -> Iterator[bytes]:
    """A start as QEMU makes it, with a stop and a start behind it."""
    features = wire.U64.pack(Feature.VERSION_1 | Feature.VHOST_USER_PROTOCOL)
    table = wire.pack_regions((RegionSpec(0, GUEST, USER, 0),))
    address = wire.VRING_ADDRESS.pack(0, 0, USER, USER + 0x200, USER + 0x100, 0)
    start = (
        _record(Request.GET_FEATURES, b"")
        + _record(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(9))
        + _record(Request.SET_FEATURES, features)
        + _record(Request.SET_MEM_TABLE, table, b"\2")
        + _record(Request.SET_VRING_NUM, wire.VRING_STATE.pack(0, 2))
        + _record(Request.SET_VRING_BASE, wire.VRING_STATE.pack(0, 0))
        + _record(Request.SET_VRING_ADDR, address)
        + _record(Request.SET_VRING_KICK, wire.U64.pack(0), b"\0")
        + _record(Request.SET_VRING_CALL, wire.U64.pack(0), b"\0")
        + _record(Request.SET_VRING_ENABLE, wire.VRING_STATE.pack(0, 1))
    )
    stop = _record(Request.SET_VRING_ENABLE, wire.VRING_STATE.pack(0, 0))
    stop += _record(Request.GET_VRING_BASE, wire.VRING_STATE.pack(0, 0))
    yield start
    yield start + stop + start


def _record(request: Request, payload: bytes, kinds: bytes = b"") -> bytes:
    return bytes([request, wire.VERSION, len(kinds), len(payload)]) + kinds + payload
