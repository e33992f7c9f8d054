"""What runs beside an application in its enclave, in one process: egress proxy, resolver, ingress, credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alcove.errors import MachineError
from alcove.proxy import egress as egress_proxy
from alcove.proxy import gateways, ingress, lease, lists, outward
from alcove.proxy.egress import LOOPBACK, Egress, EgressConfig
from alcove.proxy.ports import Mapping
from alcove.proxy.rules import Rules, parse
from alcove.proxy.service import until

OWNER: Final = "the enclave's list"
RESOLV_CONF: Final = Path("/etc/resolv.conf")


def load_rules(path: Path) -> Rules:
    """Read the enclave's list.

    Raises:
        InputError: It is none, or cannot be read.
    """
    return parse(lists.read(path, "COPY it into the image"), OWNER)


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
