"""What an enclave's machine is connected to: the NSM, vsock, and the three ports of the parent that are its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from alcove.attestation.attester import Attester
from alcove.devices.nsm.backend import NsmBackend
from alcove.devices.nsm.module import NsmModule
from alcove.devices.unix_path import listen
from alcove.devices.vsock.backend import Counters, VsockBackend
from alcove.enclave.clock import TIME_PORT, TimeService
from alcove.enclave.identity import ParentSource
from alcove.enclave.init_channel import InitChannel
from alcove.enclave.last_words import LAST_WORDS_PORT, LastWords
from alcove.enclave.paths import EnclavePaths, Paths
from alcove.types import HEARTBEAT_PORT, Cid, Port


class Peripherals:
    """The devices of one enclave, and the services that its init finds on the parent.

    Args:
        loop: The supervisor's loop.
        paths: Where the listeners of the parent's programs are.
        files: The enclave's own files.
        cid: The enclave's.
        pcrs: The registers at boot.
        attester: Signs documents; it is renewed from `parent`.
        parent: Who the parent is, as long as the enclave runs.
        on_broken: Called with the name of a device that has broken, and why. That QEMU hangs up is not told.

    Attributes:
        init: What the guest's init says.
        last_words: What the application printed last, when its image shows that.

    Raises:
        MachineError: E11 when a socket cannot be made.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        paths: Paths,
        files: EnclavePaths,
        cid: Cid,
        *,
        pcrs: Mapping[int, bytes],
        attester: Attester,
        parent: ParentSource,
        on_broken: Callable[[str, str], None],
    ) -> None:
        self._paths = paths
        self._files = files
        self._on_broken = on_broken
        with contextlib.ExitStack() as cleanups:

            def listener(path: Path) -> socket.socket:
                made = listen(path)
                cleanups.callback(made.close)
                return made

            self._module = NsmModule(attester.enclave_id, pcrs, _signer(attester, parent), os.urandom)
            nsm = NsmBackend(loop, listener(files.nsm_device), self._module, self._closed("NSM"))
            cleanups.callback(nsm.close)
            self._vsock = VsockBackend(
                loop,
                listener(files.vsock_device),
                cid,
                host_socket=files.vsock,
                port_path=self._port_path,
                on_closed=self._closed("vsock"),
            )
            cleanups.callback(self._vsock.close)
            self.init = InitChannel(loop, listener(files.guest_port(HEARTBEAT_PORT)))
            cleanups.callback(self.init.close)
            self.last_words = LastWords(loop, listener(files.guest_port(LAST_WORDS_PORT)))
            cleanups.callback(self.last_words.close)
            clock = TimeService(loop, listener(files.guest_port(TIME_PORT)))
            cleanups.callback(clock.close)
            self._cleanups = cleanups.pop_all()

    @property
    def nsm_requests(self) -> int:
        """How many the NSM has answered."""
        return self._module.requests

    @property
    def vsock(self) -> Counters:
        """What went through vsock."""
        return self._vsock.counters

    def close(self) -> None:
        """Serve no more; every socket is closed."""
        self._cleanups.close()

    def _port_path(self, port: Port) -> Path | None:
        own = self._files.guest_port(port)
        return next((path for path in (own, self._paths.port(port)) if path.exists()), None)

    def _closed(self, name: str) -> Callable[[str | None], None]:
        # end of stream comes with QEMU's end, which has its own reason; only a broken device ends the machine
        return lambda reason: None if reason is None else self._on_broken(name, reason)


def _signer(attester: Attester, parent: ParentSource) -> Callable[..., bytes]:
    def attest(
        locked: Mapping[int, bytes], user_data: bytes | None, nonce: bytes | None, public_key: bytes | None
    ) -> bytes:
        now = datetime.now(UTC)
        attester.renew(parent.load, now=now, changed=parent.changed)
        return attester.document(locked, user_data=user_data, nonce=nonce, public_key=public_key, now=now)

    return attest
