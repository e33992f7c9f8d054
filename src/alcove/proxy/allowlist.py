"""The file of vsock-proxy: AWS's allow list (cli.md §6), and more of it.

Core: text and addresses in, a decision out.

    allowlist:
    - {address: kms.us-east-1.amazonaws.com, port: 443}
    - {address: 192.0.2.7, port: 8443}
    - {address: "**.example.org", port: "443,8000-8100"}       ours: wildcards, networks and several ports (rules.py)
    - {address: 10.0.0.0/8, port: 5432}
    listeners:                                                 ours: many destinations from one process
    - {port: 8000, address: kms.us-east-1.amazonaws.com, remote_port: 443}
    - {port: 9000-9010, address: db.example.org, remote_port: 5000-5010}

A plain entry matches as AWS's does: when the ports are equal and the address is the same text, or when the entry has an
address in common with the first one of the remote.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from alcove.errors import InputError
from alcove.proxy.rules import Pattern, Ports, destination, host_pattern, ports_of

MAX_ENTRIES: Final = 4096  # AWS's own file has 76
MAX_LISTENERS: Final = 1024
MAX_LOCAL: Final = 0xFFFFFFFE  # vsock's last port stands for any

Resolver = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Entry:
    """Destinations that enclaves may reach; `pattern` where the address is more than one name or address."""

    address: str
    ports: Ports
    pattern: Pattern | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A port that enclaves connect to on CID 3, and where it leads."""

    local_port: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ProxyFile:
    """What a file says."""

    entries: tuple[Entry, ...]
    routes: tuple[Route, ...] = ()


def parse(text: str) -> ProxyFile:
    """Read a file.

    Raises:
        InputError: It is not YAML of that shape.
    """
    import yaml  # noqa: PLC0415 - an extra of the host, and slow to load: only who reads a list pays

    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"the allow list is not YAML: {' '.join(str(error).split()):.160}") from None
    if not isinstance(content, dict) or not isinstance(content.get("allowlist"), list):
        raise InputError("the allow list has no list `allowlist`", hint="see docs: allowlist: [{address, port}]")
    unknown = content.keys() - {"allowlist", "listeners"}
    if unknown:
        raise InputError(f"the allow list has `{min(map(str, unknown))}`, which means nothing here")
    entries, listeners = content["allowlist"], content.get("listeners") or []
    if len(entries) > MAX_ENTRIES:
        raise InputError(f"the allow list has more than {MAX_ENTRIES} entries")
    if not isinstance(listeners, list):
        raise InputError("`listeners` is not a list")
    routes = [route for number, item in enumerate(listeners, 1) for route in _routes(number, item)]
    local = [route.local_port for route in routes]
    if len(routes) > MAX_LISTENERS or len(set(local)) != len(local):
        raise InputError(f"there are more than {MAX_LISTENERS} listeners, or two of them have one port")
    return ProxyFile(tuple(_entry(number, item) for number, item in enumerate(entries, 1)), tuple(routes))


def _entry(number: int, item: Any) -> Entry:
    address = item.get("address") if isinstance(item, dict) else None
    try:
        ports = _ports(item.get("port") if isinstance(item, dict) else None)
    except InputError:
        ports = ()
    if not isinstance(address, str) or not address or not ports:
        raise InputError(f"entry {number} of the allow list is not an address and a port")
    many = "*" in address or "/" in address
    return Entry(address, ports, host_pattern(address, ports) if many else None)


def _ports(value: Any) -> Ports:
    """A number, as in AWS's files, or text that has more than one port."""
    if type(value) is int and 0 < value < 1 << 16:
        return ((value, value),)
    if isinstance(value, str) and not value.isdecimal():  # AWS's program refuses a number in quotes
        return ports_of(value)
    raise InputError("not a port")


def _routes(number: int, item: Any) -> Iterable[Route]:
    keys = {"port", "address", "remote_port"}
    if not isinstance(item, dict) or item.keys() != keys or not isinstance(item["address"], str) or not item["address"]:
        raise InputError(f"listener {number} is not {{port, address, remote_port}}")
    local, remote = _range(item["port"], MAX_LOCAL), _range(item["remote_port"], 0xFFFF)
    if not local or len(local) != len(remote):
        raise InputError(f"listener {number} has ports that cannot be, or not as many here as there")
    return [Route(port, item["address"], far) for port, far in zip(local, remote, strict=True)]


def _range(value: Any, most: int) -> range:
    first, _, last = str(value).partition("-")
    if type(value) not in (int, str) or not first.isdecimal() or (last and not last.isdecimal()):
        return range(0)
    low, high = int(first), int(last or first)
    return range(low, high + 1) if 0 < low <= high <= most and high - low < MAX_LISTENERS else range(0)


def allows(entries: Iterable[Entry], host: str, port: int, resolve: Resolver) -> bool:
    """Whether a destination is on the list.

    Args:
        entries: The list.
        host: The remote's name or address, as it was given.
        port: The remote's port.
        resolve: Gives the IP addresses of a name, and none when it does not resolve. Only asked when no entry has the
            name itself, so that a dead resolver does not keep a listed name out.
    """
    candidates = [entry for entry in entries if any(first <= port <= last for first, last in entry.ports)]
    if any(entry.address == host for entry in candidates) or _fits(candidates, host, port):
        return True
    if not candidates:
        return False
    first = next(iter(resolve(host)), None)
    return first is not None and any(_has(entry, first, port, resolve) for entry in candidates)


def _fits(entries: Iterable[Entry], host: str, port: int) -> bool:
    try:
        where = destination(host, port)
    except InputError:
        return False
    return any(entry.pattern is not None and entry.pattern.fits(where) for entry in entries)


def _has(entry: Entry, address: str, port: int, resolve: Resolver) -> bool:
    if entry.pattern is None:
        return address in resolve(entry.address)
    try:
        return entry.pattern.covers(ipaddress.ip_address(address), port)
    except ValueError:
        return False
