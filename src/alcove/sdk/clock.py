"""The time that the NSM vouches for (sdk.md §8).

An enclave has no network time and often no clock of its own. Every attestation document carries the device's time, so
requests are signed with that, and the system clock, which TLS looks at, is set from it when it is far off.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

from alcove.codec import cbor
from alcove.sdk.errors import NsmError

TOLERANCE: Final = 30.0  # seconds; SigV4 tolerates five minutes


class DocumentSource(Protocol):
    """What makes attestation documents; `Nsm` does."""

    def attestation(self, *, public_key: bytes | None = None) -> bytes:
        """A fresh document."""


def document_time(document: bytes) -> float:
    """The time of a document that came straight from the device: seconds since the epoch.

    Nothing is verified here; never use it on a document that travelled (`alcove.attestation` verifies).

    Raises:
        NsmError: It is not an attestation document.
    """
    try:
        parts = cbor.decode(document)
        parts = parts.value if isinstance(parts, cbor.Tag) else parts
        payload = cbor.decode(parts[2]) if isinstance(parts, list) else None
        milliseconds = payload["timestamp"] if isinstance(payload, dict) else None
    except (ValueError, KeyError, IndexError, TypeError):
        milliseconds = None
    if not isinstance(milliseconds, int) or not 0 < milliseconds < 1 << 53:
        raise NsmError("InvalidResponse", "the NSM's document has no time")
    return milliseconds / 1000


def correct(source: DocumentSource, *, tolerance: float = TOLERANCE) -> float:
    """Set the system clock to the device's time when they differ by more than `tolerance` seconds.

    Returns:
        By how many seconds the clock was behind (negative: ahead); report it when it is large.

    Raises:
        NsmError: The module refused or cannot be reached.
        PermissionError: The clock is wrong and this process may not set it (CAP_SYS_TIME).
    """
    true_time = document_time(source.attestation())
    behind = true_time - time.time()
    if abs(behind) > tolerance:
        time.clock_settime(time.CLOCK_REALTIME, true_time)
    return behind
