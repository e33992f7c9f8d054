"""Which port leads to which.

Core: text in, numbers out.

    8443            8443 leads to 8443
    443:8443        443 leads to 8443
    0.0.0.0:443:8443, [::1]:443:8443        the same, at that address of this machine
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
    host, port = (match[1] or "").strip("[]"), int(match[2])
    target = int(match[3] or port)
    if not (0 if any_port else 1) <= port <= max_port or not 0 < target <= max_target:
        raise UsageError(f"`{text}` has a port that cannot be: from 1 to {max_port}, and to {max_target}")
    if host:
        try:
            host = str(ipaddress.ip_address(host))
        except ValueError:
            raise UsageError(f"`{text}` does not begin with an IP address") from None
    return Mapping(host, port, target)
