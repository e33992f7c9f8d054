"""Pages of a list, and the markers that lead from one to the next (kms.md §20).

Core: a call and a way to fetch in; one page out. Markers are authenticated and bound to the operation.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from typing import Any, Final, TypeVar

from alcove.kms.call import Call
from alcove.kms.errors import KmsError

_MAC_BYTES: Final = 16
Item = TypeVar("Item")


def page(
    call: Call, secret: bytes, *, fetch: Callable[[str, int], list[Item]], name: Callable[[Item], str], default: int
) -> tuple[list[Item], dict[str, Any]]:
    """One page, and its Truncated and NextMarker members.

    Args:
        call: Gives operation, Limit and Marker.
        secret: Authenticates markers.
        fetch: Items in the order of their names, after a name, so many at most.
        name: The name of an item.
        default: Limit when the call has none.

    Raises:
        KmsError: InvalidMarkerException.
    """
    limit: int = call.params.get("Limit", default)
    after = _open(call.params["Marker"], call.operation, secret) if "Marker" in call.params else ""
    found = fetch(after, limit + 1)
    if len(found) <= limit:
        return found, {"Truncated": False}
    return found[:limit], {"Truncated": True, "NextMarker": _seal(name(found[limit - 1]), call.operation, secret)}


def _seal(after: str, operation: str, secret: bytes) -> str:
    return base64.urlsafe_b64encode(_mac(after, operation, secret) + after.encode()).decode()


def _open(marker: str, operation: str, secret: bytes) -> str:
    try:
        raw = base64.urlsafe_b64decode(marker.encode("ascii"))
        after = raw[_MAC_BYTES:].decode()
    except (ValueError, binascii.Error):
        raw, after = b"", ""
    if not hmac.compare_digest(raw[:_MAC_BYTES], _mac(after, operation, secret)):
        raise KmsError("InvalidMarkerException", "the marker is not one of this list")
    return after


def _mac(after: str, operation: str, secret: bytes) -> bytes:
    return hmac.digest(secret, f"{operation}\0{after}".encode(), "sha256")[:_MAC_BYTES]
