"""The allow list of vsock-proxy (cli.md §6).

Core: text and addresses in, a decision out.

    allowlist:
    - {address: kms.us-east-1.amazonaws.com, port: 443}
    - {address: 192.0.2.7, port: 8443}

An entry is one host name or IP address and one port: no wildcards, no ranges. It matches when the ports are equal and
the address is the same text, or when the entry has an address in common with the first one of the remote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from alcove.errors import InputError

MAX_ENTRIES: Final = 4096  # AWS's own file has 76

Resolver = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A destination that enclaves may reach."""

    address: str
    port: int


def parse(text: str) -> tuple[Entry, ...]:
    """The entries of an allow list file.

    Raises:
        InputError: It is not YAML of that shape.
    """
    import yaml  # noqa: PLC0415 - an extra of the host, and slow to load: only who reads a list pays

    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"the allow list is not YAML: {str(error).splitlines()[0]}") from None
    entries = content.get("allowlist") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError("the allow list has no list `allowlist`", hint="see docs: allowlist: [{address, port}]")
    if len(entries) > MAX_ENTRIES:
        raise InputError(f"the allow list has more than {MAX_ENTRIES} entries")
    return tuple(_entry(number, item) for number, item in enumerate(entries, 1))


def _entry(number: int, item: Any) -> Entry:
    address = item.get("address") if isinstance(item, dict) else None
    port = item.get("port") if isinstance(item, dict) else None
    if not isinstance(address, str) or not address or type(port) is not int or not 0 < port < 1 << 16:
        raise InputError(f"entry {number} of the allow list is not an address and a port")
    return Entry(address, port)


def allows(entries: Iterable[Entry], host: str, port: int, resolve: Resolver) -> bool:
    """Whether a destination is on the list.

    Args:
        entries: The list.
        host: The remote's name or address, as it was given.
        port: The remote's port.
        resolve: Gives the IP addresses of a name, and none when it does not resolve. Only asked when no entry is the
            same text, so that a dead resolver does not keep a listed name out.
    """
    candidates = [entry.address for entry in entries if entry.port == port]
    if host in candidates:
        return True
    if not candidates:
        return False
    first = next(iter(resolve(host)), None)
    return first is not None and any(first in resolve(address) for address in candidates)
