"""A guest and its QEMU in one: memory, rings and the front-end's side of vhost-user (devices.md §3.4, §3.5).

with FakeGuest(path, queues=(2,)) as guest:   # NSM
    guest.realize()
    guest.start()
    guest.queues[0].add(readable=[b"..."])
    guest.queues[0].kick()
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final, Self

from alcove.devices.vhost_user import messages as wire
from alcove.devices.vhost_user.messages import Feature, ProtocolFeature, RegionSpec, Request
from alcove.testing.front_end import FrontEnd
from alcove.testing.guest_queue import GuestQueue

USER_BASE: Final = 0x7F00_0000_0000  # where this QEMU claims to have mapped the guest's memory
_RINGS_START: Final = 0x10_0000
_HOLE: Final = 0xE_0000  # §3.7: the firmware's 0xe0000-0xfffff is not shared
_FEATURES: Final = Feature.VERSION_1 | Feature.VHOST_USER_PROTOCOL


class FakeGuest:
    """A machine with one vhost-user device.

    Args:
        path: The back-end's listening socket.
        queues: The number of entries of each ring that the front-end hands over.
        memory: Bytes of guest memory; 24 MiB hold two vsock queues of 128.
        config_size: Bytes of configuration space to read at realize; 0 asks for none.
        timeout: Seconds to wait for each answer.
        front_end: Its connection, in place of one made here.
    """

    def __init__(
        self,
        path: str,
        *,
        queues: tuple[int, ...] = (2,),
        memory: int = 24 << 20,
        config_size: int = 0,
        timeout: float = 30.0,
        front_end: FrontEnd | None = None,
    ) -> None:
        self.front_end = FrontEnd(path, timeout=timeout) if front_end is None else front_end
        self.config_size = config_size
        self.config = b""
        self.memory_fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memory_fd, memory)
        fcntl.fcntl(
            self.memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        )  # as QEMU's memory-backend-memfd
        self.memory = memoryview(mmap.mmap(self.memory_fd, memory))
        self.regions = (
            RegionSpec(0, _HOLE, USER_BASE, 0),
            RegionSpec(_RINGS_START, memory - _RINGS_START, USER_BASE + _RINGS_START, _RINGS_START),
        )
        self.queues: list[GuestQueue] = []
        start = _RINGS_START
        for size in queues:
            self.queues.append(GuestQueue(self.memory, start, size))
            start = (self.queues[-1].end + 4095) & ~4095
        if start > memory:
            raise ValueError(f"these queues need {start} bytes of guest memory")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def realize(self) -> None:
        """What QEMU does when it makes the device, before the guest runs."""
        front = self.front_end
        (features,) = wire.U64.unpack(front.ask(Request.GET_FEATURES))
        if features & _FEATURES != _FEATURES:
            raise ConnectionError(f"the back-end offers {features:#x}")
        (protocol,) = wire.U64.unpack(front.ask(Request.GET_PROTOCOL_FEATURES))
        front.tell(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(protocol))
        front.protocol = ProtocolFeature(protocol)
        front.ask(Request.GET_QUEUE_NUM)
        front.tell(Request.SET_OWNER, ack=False)
        front.ask(Request.GET_FEATURES)
        for index in range(len(self.queues)):
            self._call(index)
            error = os.eventfd(0)
            front.tell(Request.SET_VRING_ERR, wire.U64.pack(index), [error])
            os.close(error)
        if self.config_size:
            header = wire.CONFIG.pack(0, self.config_size, 0)
            reply = front.ask(Request.GET_CONFIG, header + bytes(self.config_size))
            self.config = reply[len(header) :]

    def start(self, *, base: int = 0, share_memory: bool = True) -> None:
        """What QEMU does when the guest's driver is ready (DRIVER_OK).

        Args:
            base: The available index to resume at; 0 also empties the rings, as a new driver does.
            share_memory: False stops after SET_FEATURES, as QEMU does without share=on.
        """
        front = self.front_end
        if not base:
            for queue in self.queues:
                queue.reset()
        front.tell(Request.SET_FEATURES, wire.U64.pack(_FEATURES), ack=False)
        if not share_memory:
            return
        front.tell(Request.SET_MEM_TABLE, wire.pack_regions(self.regions), [self.memory_fd] * len(self.regions))
        for index in range(len(self.queues)):
            self._ring(index, base)
        for index in range(len(self.queues)):
            self.enable(index, enabled=True)
        for index in range(len(self.queues)):
            self._call(index)

    def enable(self, index: int, *, enabled: bool) -> None:
        """Enable or disable a ring, with QEMU's barrier."""
        self.front_end.tell(Request.SET_VRING_ENABLE, wire.VRING_STATE.pack(index, enabled))
        if not self.front_end.protocol & ProtocolFeature.REPLY_ACK:
            self.front_end.ask(Request.GET_FEATURES)

    def stop(self) -> list[int]:
        """What QEMU does when the guest resets.

        Returns:
            The next available index of each ring.
        """
        for index in range(len(self.queues)):
            self.enable(index, enabled=False)
        answers = (
            self.front_end.ask(Request.GET_VRING_BASE, wire.VRING_STATE.pack(i, 0)) for i in range(len(self.queues))
        )
        return [wire.VRING_STATE.unpack(answer)[1] for answer in answers]

    def close(self) -> None:
        """End of stream: the machine is gone."""
        self.front_end.close()
        for queue in self.queues:
            queue.close()
        os.close(self.memory_fd)

    def _ring(self, index: int, base: int) -> None:
        front, queue = self.front_end, self.queues[index]
        front.tell(Request.SET_VRING_NUM, wire.VRING_STATE.pack(index, queue.size), ack=False)
        front.tell(Request.SET_VRING_BASE, wire.VRING_STATE.pack(index, base), ack=False)
        rings = (USER_BASE + address for address in (queue.descriptors, queue.used, queue.available))
        front.tell(Request.SET_VRING_ADDR, wire.VRING_ADDRESS.pack(index, 0, *rings, 0), ack=False)
        queue.kick()  # QEMU hands over a descriptor that is signalled already (§3.6)
        front.tell(Request.SET_VRING_KICK, wire.U64.pack(index), [queue.kick_fd])
        self._call(index)

    def _call(self, index: int) -> None:
        self.front_end.tell(Request.SET_VRING_CALL, wire.U64.pack(index), [self.queues[index].new_call()])
