"""Which port leads to which.

Core: text in, numbers out.

    8443            8443 leads to 8443
    443:8443        443 leads to 8443
    0.0.0.0:443:8443, [::1]:443:8443        the same, at that address of this machine

and, where nothing is led on, a port or [ADDRESS:]PORT alone.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from alcove.errors import UsageError

MAX_TCP: Final = 0xFFFF
MAX_VSOCK: Final = 0xFFFFFFFE  # the last one stands for any port
_MAPPING: Final = re.compile(r"(?:(\[[^\]]*\]|[0-9.]+):(?=[0-9]+:))?([0-9]{1,10})(?::([0-9]{1,10}))?")
_PLACE: Final = re.compile(r"(?:(\[[^\]]*\]|[0-9]+\.[0-9.]*):)?([0-9]{1,5})")
_PORT: Final = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class Mapping:
    """Where to listen, and where that leads; `host` is an IP address or empty."""

    host: str
    port: int
    target: int


def parse(text: str, *, max_port: int, max_target: int, any_port: bool = False) -> Mapping:
    """Read one mapping.

    Args:
        text: As above.
        max_port: The highest port to listen on.
        max_target: The highest port that it may lead to.
        any_port: Whether port 0 may stand for one that is free.

    Raises:
        UsageError: It is none.
    """
    match = _MAPPING.fullmatch(text)
    if match is None:
        raise UsageError(f"`{text}` is not [ADDRESS:]PORT:PORT", hint="such as 8443:443, or 0.0.0.0:8443:443")
    port = int(match[2])
    target = int(match[3] or port)
    if not (0 if any_port else 1) <= port <= max_port or not 0 < target <= max_target:
        raise UsageError(f"`{text}` has a port that cannot be: from 1 to {max_port}, and to {max_target}")
    return Mapping(_host(text, match[1]), port, target)


def parse_place(text: str) -> Mapping:
    """Read where to listen, a TCP port of this machine; it leads nowhere else.

    Raises:
        UsageError: It is no such place.
    """
    match = _PLACE.fullmatch(text)
    if match is None or not 0 < int(match[2]) <= MAX_TCP:
        raise UsageError(f"`{text}` is not [ADDRESS:]PORT", hint="such as 9100, or 0.0.0.0:9100")
    return Mapping(_host(text, match[1]), int(match[2]), int(match[2]))


def parse_port(text: str, most: int) -> int:
    """Read a port, from 1 to `most`.

    Raises:
        UsageError: It is none.
    """
    if _PORT.fullmatch(text) is None or not 0 < int(text) <= most:
        raise UsageError(f"`{text}` is not a port, a number from 1 to {most}")
    return int(text)


def _host(text: str, given: str | None) -> str:
    if given is None:
        return ""
    try:
        return str(ipaddress.ip_address(given.strip("[]")))
    except ValueError:
        raise UsageError(f"`{text}` does not begin with an IP address") from None
