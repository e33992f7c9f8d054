"""What runs beside an application in its enclave, in one process: egress proxy, resolver, ingress; and the application.

Under `alcove-enclave run` the application is a child: it starts when everything listens, gets the signals, and its end
is the end, with its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alcove.errors import AlcoveError, InputError, MachineError
from alcove.proxy import egress as egress_proxy
from alcove.proxy import gateways, ingress, lease, outward
from alcove.proxy.egress import LOOPBACK, Egress, EgressConfig
from alcove.proxy.ports import Mapping
from alcove.proxy.rules import Rules, parse
from alcove.proxy.service import take_descriptors, until

OWNER: Final = "the enclave's list"
RESOLV_CONF: Final = Path("/etc/resolv.conf")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_GRACE_SECONDS: Final = 10.0  # for the application, when a companion has failed
_log = logging.getLogger("alcove.proxy")


def load_rules(path: Path) -> Rules:
    """Read the enclave's list.

    Raises:
        InputError: It is none, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path}: the list cannot be read: {error}", hint="COPY it into the image") from None
    return parse(text, OWNER)


@dataclass(frozen=True, slots=True)
class Companions:
    """What is wanted.

    Args:
        egress: The egress proxy, or None.
        resolver: Answer DNS for programs that know no proxy; needs `egress`.
        ingress: From vsock ports to TCP ports.
        credentials: From a TCP port to the vsock port of the parent's provider, or None.
    """

    egress: EgressConfig | None = None
    resolver: bool = False
    ingress: Sequence[Mapping] = ()
    credentials: Mapping | None = None


def environment(companions: Companions) -> dict[str, str]:
    """The variables by which programs find the proxy, and SDKs the credentials."""
    found = {}
    if companions.credentials is not None:
        found["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"http://{LOOPBACK}:{companions.credentials.port}{lease.PATH}"
    if companions.egress is None:
        return found
    proxy, none = f"http://{LOOPBACK}:{companions.egress.port}", f"localhost,{LOOPBACK},::1"
    values = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": none}
    return found | values | {name.upper(): value for name, value in values.items()}


async def serve(companions: Companions, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Serve until `stop` is set; `ready` is called once all listens.

    Raises:
        MachineError: A port cannot be had.
    """
    services: list[Awaitable[None]] = []
    wanted = (companions.egress is not None, companions.resolver, companions.ingress, companions.credentials)
    waiting = sum(map(bool, wanted))
    if not waiting:
        ready()

    def one_more(*_: object) -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            ready()

    if companions.egress is not None:
        egress = Egress(companions.egress)
        services.append(egress_proxy.serve(egress, stop, one_more))
        if companions.resolver:
            services.append(gateways.serve(egress, one_more))
    if companions.ingress:
        services.append(ingress.serve(companions.ingress, stop, one_more))
    if companions.credentials is not None:
        services.append(outward.serve(companions.credentials, stop, one_more))
    await until(stop, services)


async def run(companions: Companions, program: Sequence[str]) -> int:
    """Serve, and run a program.

    Returns:
        The program's status; 128 and the number when a signal ended it.

    Raises:
        AlcoveError: A companion failed, or the program cannot be started.
    """
    take_descriptors()
    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.ensure_future(serve(companions, stop, ready.set))
    started = asyncio.create_task(ready.wait())
    await asyncio.wait((serving, started), return_when=asyncio.FIRST_COMPLETED)
    try:
        if not serving.done():
            return await _supervise(serving, program, os.environ | environment(companions))
        await serving  # raises: nothing ends before the program otherwise
        raise MachineError("what runs beside the application ended before it began")
    finally:
        stop.set()
        started.cancel()
        with contextlib.suppress(AlcoveError, OSError):
            await serving


async def _supervise(serving: asyncio.Future[None], program: Sequence[str], variables: dict[str, str]) -> int:
    loop, early = asyncio.get_running_loop(), list[signal.Signals]()
    child: asyncio.subprocess.Process | None = None

    def pass_on(number: signal.Signals) -> None:
        if child is None:
            early.append(number)
            return
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    for number in _SIGNALS:  # before there is a child: none may be lost
        loop.add_signal_handler(number, pass_on, number)
    try:
        child = await asyncio.create_subprocess_exec(*program, env=variables)
    except OSError as error:
        raise MachineError(f"cannot run {program[0]}: {error.strerror}") from None
    for number in early:
        pass_on(number)
    ended = asyncio.create_task(child.wait())
    await asyncio.wait((ended, serving), return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        _log.error("what runs beside the application has failed; the application is ended")
        pass_on(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), _GRACE_SECONDS)
        pass_on(signal.SIGKILL)
        await ended
        await serving
    status = ended.result()
    return status if status >= 0 else 128 - status


def use_resolver(path: Path = RESOLV_CONF) -> None:
    """Let the C library ask the enclave's own resolver.

    Raises:
        MachineError: The file cannot be written.
    """
    try:
        target = path.resolve()  # images by linuxkit's way have a link there, into a directory that /run lacks
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"nameserver {LOOPBACK}\n")
    except OSError as error:
        raise MachineError(
            f"cannot write {path}: {error.strerror}", hint=f"let the image have it: nameserver {LOOPBACK}"
        ) from None
