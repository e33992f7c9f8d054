"""What a proxy counts, and how Prometheus reads it.

Core: numbers in, text out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_HELP: Final = {
    "open": ("gauge", "connections that are open now"),
    "accepted": ("counter", "connections that were accepted"),
    "refused": ("counter", "connections that a rule refused"),
    "failed": ("counter", "connections whose destination could not be reached, or that broke"),
    "sent": ("counter", "bytes from who connected to the destination"),
    "received": ("counter", "bytes from the destination to who connected"),
}
_UNITS: Final = {"sent": "_bytes", "received": "_bytes"}


@dataclass(slots=True)
class Counters:
    """Of one listener, since it began; `name` says which."""

    name: str
    open: int = 0
    accepted: int = 0
    refused: int = 0
    failed: int = 0
    sent: int = 0
    received: int = 0


def exposition(counters: Iterable[Counters]) -> str:
    """Prometheus's text format, version 0.0.4."""
    rows = list(counters)
    lines = []
    for field, (kind, text) in _HELP.items():
        name = f"alcove_proxy_{field}{_UNITS.get(field, '_connections')}{'_total' if kind == 'counter' else ''}"
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f'{name}{{listener="{_label(row.name)}"}} {getattr(row, field)}' for row in rows]
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
