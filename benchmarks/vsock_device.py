"""The vsock device alone: no virtual machine, a guest that is a program, and what the kernel would need at least.

Three processes: the device in its event loop, as a supervisor runs it; a guest that drives the rings as Linux does; the
parent's program at the other end of the Unix socket. What counts is the processor time of the device's process alone
(one core is one second of it a second), since the other two are no part of it and share the machine with it.

The limit in the same run is a loop without a device that makes the same system calls: it writes 64 KiB from shared
memory to a Unix socket, or reads from one into buffers of 4 KiB.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import select
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from alcove.devices.virtio.queue import DESC_WRITE
from alcove.devices.vsock.packet import HEADER_SIZE, STREAM, Header, Op
from alcove.testing.fake_guest import FakeGuest
from alcove.testing.guest_queue import GuestQueue
from alcove.types import Cid
from benchmarks import vsock_peers
from benchmarks.harness import Case, Report, at_least, main, measure
from benchmarks.process import Cost, FailedError

_CID: Final = Cid(16)
_PORT: Final = 5000
_ENTRIES: Final = 128  # as QEMU has it
_WINDOW: Final = 256 * 1024  # a Linux guest's buffer
_LARGE: Final = 64 * 1024
_BUFFER: Final = 4096 + HEADER_SIZE  # 4 KiB of payload
_FIELDS: Final = struct.Struct("<QQIIIHHIII")
_USED: Final = struct.Struct("<II")
_INDEX: Final = struct.Struct("<H")
MB: Final = 1_000_000


class Ring:
    """A guest's ring whose buffers stay where they are: entry n is always descriptor n, one of `size` bytes."""

    def __init__(self, queue: GuestQueue, memory: memoryview, start: int, size: int, flags: int) -> None:
        self.queue = queue
        self._memory = memory
        self.start, self.size = start, size
        self.offered = self.seen = 0
        for index in range(queue.size):
            queue.write_descriptor(index, start + index * size, size, flags, 0)

    def buffer(self, index: int) -> memoryview:
        """The bytes of a descriptor."""
        at = self.start + index * self.size
        return self._memory[at : at + self.size]

    def offer(self, index: int, length: int | None = None) -> None:
        """Put a descriptor on the ring; the device sees it after :meth:`publish`."""
        if length is not None:
            struct.pack_into("<I", self._memory, self.queue.descriptors + 16 * index + 8, length)
        at = self.queue.available + 4 + 2 * (self.offered % self.queue.size)
        _INDEX.pack_into(self._memory, at, index)
        self.offered = (self.offered + 1) & 0xFFFF

    def publish(self) -> None:
        """Show what was offered, and kick."""
        self.queue.set_available_index(self.offered)
        self.queue.kick()

    def used(self) -> Iterator[tuple[int, int]]:
        """What came back since the last look: descriptors and lengths."""
        index = self.queue.used_index
        while self.seen != index:
            yield _USED.unpack_from(self._memory, self.queue.used + 4 + 8 * (self.seen % self.queue.size))
            self.seen = (self.seen + 1) & 0xFFFF


class Guest:
    """A guest that moves bytes as fast as its credit allows, like Linux's virtio transport."""

    def __init__(self, path: Path) -> None:
        self.machine = FakeGuest(str(path), queues=(_ENTRIES, _ENTRIES), config_size=8, memory=64 << 20)
        self.machine.realize()
        self.machine.start()
        start = self.machine.queues[-1].end
        self.rx = Ring(self.machine.queues[0], self.machine.memory, start, _BUFFER, DESC_WRITE)
        start += _ENTRIES * _BUFFER
        self.tx = Ring(self.machine.queues[1], self.machine.memory, start, _LARGE + HEADER_SIZE, 0)
        self._free = list(range(_ENTRIES))
        self._arrived: list[tuple[Any, ...]] = []
        self._early: list[tuple[Any, ...]] = []  # data that came while other streams were opened
        for index in range(_ENTRIES):
            self.rx.offer(index)
        self.rx.publish()

    def send(self, port: int, op: Op, length: int = 0, *, fwd_cnt: int = 0) -> None:
        """Put a packet of guest port `port` on the ring."""
        self.reap()
        while not self._free:
            self.tx.publish()
            self.wait()
            self.reap()
        index = self._free.pop()
        header = Header(_CID, 3, port, _PORT, length, STREAM, op, 0, _WINDOW, fwd_cnt & 0xFFFFFFFF)
        self.tx.buffer(index)[:HEADER_SIZE] = header.pack()
        self.tx.offer(index, HEADER_SIZE + length)

    def reap(self) -> None:
        """Take back what the device has read."""
        self._free += [index for index, _ in self.tx.used()]

    def received(self) -> Iterator[tuple[Any, ...]]:
        """Headers of the packets that came, as tuples; their buffers are offered again."""
        headers = []
        for index, _ in self.rx.used():
            headers.append(_FIELDS.unpack_from(self.rx.buffer(index)))
            self.rx.offer(index)
        if headers:
            self.rx.publish()
        return iter(headers)

    def wait(self) -> None:
        """Wait for an interrupt."""
        calls = [self.rx.queue.call_fd, self.tx.queue.call_fd]
        ready = select.select(calls, [], [], 10)[0]
        if not ready:
            raise FailedError("the device does nothing")
        for call in ready:
            os.eventfd_read(call)

    def connect(self, streams: int) -> None:
        """Open guest ports 1 to `streams`."""
        for port in range(1, streams + 1):
            self.send(port, Op.REQUEST)
            self.tx.publish()
            while (header := self._next())[6] != Op.RESPONSE:
                self._early.append(header)
        self.reap()

    def _next(self) -> tuple[Any, ...]:
        while not self._arrived:
            self._arrived += self.received()
            if not self._arrived:
                self.wait()
        return self._arrived.pop(0)

    def pour(self, streams: int, amount: int) -> None:
        """Send `amount` bytes on each stream, 64 KiB a packet."""
        sent, told = dict.fromkeys(range(1, streams + 1), 0), dict.fromkeys(range(1, streams + 1), 0)
        while True:
            busy = False
            for port, at in sent.items():
                if at < amount and at - told[port] + _LARGE <= _WINDOW and self._free:
                    self.send(port, Op.RW, _LARGE)
                    sent[port] += _LARGE
                    busy = True
            if busy:
                self.tx.publish()
            for header in self.received():
                told[header[3]] = header[9]
                busy = True
            self.reap()
            if min(sent.values()) >= amount and len(self._free) == _ENTRIES:
                return
            if not busy:
                self.wait()

    def take(self, streams: int, amount: int) -> None:
        """Receive `amount` bytes on each stream, telling the device as Linux does: when 64 KiB of room are left."""
        got, told = dict.fromkeys(range(1, streams + 1), 0), dict.fromkeys(range(1, streams + 1), 0)
        left = streams * amount
        while left:
            due = set()
            early, self._early = [*self._early, *self._arrived], []
            self._arrived.clear()
            for header in itertools.chain(early, self.received()):
                port, op = header[3], header[6]
                if op == Op.RW:
                    got[port] += header[4]
                    left -= header[4]
                if op == Op.CREDIT_REQUEST or got[port] - told[port] > _WINDOW - _LARGE:
                    due.add(port)
            for port in due:
                self.send(port, Op.CREDIT_UPDATE, fwd_cnt=got[port])
                told[port] = got[port]
            if due:
                self.tx.publish()
                self.reap()
            elif left:
                self.wait()

    def ping(self, count: int) -> None:
        """Send one byte and wait for it, `count` times."""
        for number in range(count):
            self.send(1, Op.RW, 1, fwd_cnt=number)
            self.tx.publish()
            while not any(header[6] == Op.RW for header in self.received()):
                self.wait()
            self.reap()

    def close(self) -> None:
        """The machine is gone."""
        self.machine.close()


def _device(directory: Path, ready: Any) -> None:
    """The device's process."""
    vsock_peers.serve_device(directory, _CID, ready)


@contextlib.contextmanager
def _process(target: Callable[..., None], *arguments: object) -> Iterator[int]:
    """A process that is ready when this returns, and ended at the end."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(10):
            raise FailedError(f"{target.__name__} did not start")
        ours.recv()
        assert process.pid is not None
        yield process.pid
    finally:
        process.terminate()
        process.join(5)


def _through_device(peer: Callable[..., None], streams: int, work: Callable[[Guest], None], *peer_args: object) -> Cost:
    """Run `work` on a guest; the cost is wall time, and processor time of the device alone."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vs-")))
        device = stack.enter_context(_process(_device, directory))
        stack.enter_context(_process(peer, directory / f"{_PORT}.sock", streams, *peer_args))
        guest = Guest(directory / "device.sock")
        stack.callback(guest.close)
        guest.connect(streams)
        wall, cpu = time.perf_counter(), vsock_peers.cpu_seconds(device)
        work(guest)
        return Cost(time.perf_counter() - wall, vsock_peers.cpu_seconds(device) - cpu)


def _copy_out(amount: int) -> Cost:
    """The limit of guest → parent: 64 KiB from shared memory into a Unix socket that somebody reads."""
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        stack.callback(ours.close)
        stack.enter_context(_process(vsock_peers.drain_one, theirs))
        views = [memoryview(bytearray(_LARGE)) for _ in range(_ENTRIES)]
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(amount // _LARGE):
            ours.sendmsg([views[number % _ENTRIES]])
        return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def _copy_in(amount: int) -> Cost:
    """The limit of parent → guest: from a Unix socket that somebody fills into 64 buffers of 4 KiB at a time."""
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        stack.callback(ours.close)
        stack.enter_context(_process(vsock_peers.fill_one, theirs))
        views = [memoryview(bytearray(4096)) for _ in range(64)]
        wall, cpu, left = time.perf_counter(), time.process_time(), amount
        while left > 0:
            left -= ours.recvmsg_into(views)[0]
        return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def benchmark(arguments: argparse.Namespace) -> Report:
    """Both directions and the round trip, each beside its limit."""
    amount = arguments.size * 1024 * 1024
    cases = [
        Case("limit: write 64 KiB", lambda: _copy_out(amount), amount),
        Case("limit: read into 4 KiB", lambda: _copy_in(amount), amount),
    ]
    for streams in (1, 16, 256):
        each = max(amount // streams // _LARGE, 1) * _LARGE
        out = lambda n=streams, e=each: _through_device(vsock_peers.drain, n, lambda g: g.pour(n, e))  # noqa: E731
        into = lambda n=streams, e=each: _through_device(vsock_peers.fill, n, lambda g: g.take(n, e), e)  # noqa: E731
        cases.append(Case(f"guest → parent, {streams} streams", out, each * streams))
        cases.append(Case(f"parent → guest, {streams} streams", into, each * streams))
    cases.append(Case(f"{_PINGS} round trips", lambda: _through_device(vsock_peers.echo, 1, lambda g: g.ping(_PINGS))))
    results = {result.name: result for result in measure(cases, arguments.rounds)}
    rows = []
    for result in results.values():
        cpu = min(cost.cpu for cost in result.costs)
        row: dict[str, Any] = {"case": result.name}
        if result.size:
            row |= {"MB/s a core": round(result.size / cpu / MB)}
            limit = results["limit: write 64 KiB" if "guest →" in result.name else "limit: read into 4 KiB"]
            best = min(cost.cpu for cost in limit.costs) / limit.size
            row |= {"of the limit": round(best * result.size / cpu, 2)} if "limit" not in result.name else {}
        else:
            row |= {"device µs each": round(cpu / _PINGS * 1e6, 1)}
        rows.append(row)
    rates = {row["case"]: row.get("MB/s a core", 0) for row in rows}
    promises = [
        at_least("guest → parent, 64 KiB packets, MB/s a core", rates["guest → parent, 1 streams"], 1000),
        at_least("parent → guest, 4 KiB buffers, MB/s a core", rates["parent → guest, 1 streams"], 300),
    ]
    return Report(list(results.values()), promises, {"by the device's processor time": rows})


_PINGS: Final = 5000


def options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="bytes of each case; 256 when not given")


if __name__ == "__main__":
    sys.exit(main("vsock_device", __doc__ or "", benchmark, options))
