"""Pages of a list, and the markers that lead from one to the next (kms.md §20).

Core: a call and a way to fetch in; one page out. Markers are authenticated and bound to their list.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, validation

_MAC_BYTES: Final = 16
Item = TypeVar("Item")


def page(
    tools: Tools,
    call: Call,
    *,
    fetch: Callable[[str, int], list[Item]],
    name: Callable[[Item], str],
    default: int,
    most: int = 1000,
) -> tuple[list[Item], dict[str, Any]]:
    """One page, and its Truncated and NextMarker members.

    Args:
        tools: Gives the secret that authenticates markers.
        call: Gives operation, Limit, Marker, and the filters that a marker is bound to.
        fetch: Items in the order of their names, after a name, so many at most.
        name: The name of an item.
        default: Limit when the call has none.
        most: The largest Limit of this operation (§20).

    Raises:
        KmsError: InvalidMarkerException, or ValidationException for the Limit.
    """
    limit: int = call.params.get("Limit", default)
    if limit > most:
        constraint = f"Member must have value less than or equal to {most}"
        raise validation(
            f"1 validation error detected: Value '{limit}' at 'limit' failed to satisfy constraint: {constraint}"
        )
    secret, scope = tools.store.derive("markers"), _scope(tools, call)
    after = _open(call.params["Marker"], scope, secret) if "Marker" in call.params else ""
    found = fetch(after, limit + 1)
    if len(found) <= limit:
        return found, {"Truncated": False}
    return found[:limit], {"Truncated": True, "NextMarker": _seal(name(found[limit - 1]), scope, secret)}


def listed(items: Sequence[Item], after: str, limit: int) -> list[Item]:
    """The part of a whole list that a page asks for, when items are named by their places, counted from 0."""
    start = int(after) + 1 if after else 0
    return list(items[start : start + limit])


def _scope(tools: Tools, call: Call) -> str:
    """Account, Region, operation and filters: a marker is good for this list alone."""
    filters = {k: v for k, v in call.params.items() if k not in {"Limit", "Marker"}}
    if call.key:
        filters["KeyId"] = call.key.key_id
    return json.dumps([tools.realm.root_arn, tools.realm.region, call.operation, filters], sort_keys=True)


def _seal(after: str, scope: str, secret: bytes) -> str:
    return base64.urlsafe_b64encode(_mac(after, scope, secret) + after.encode()).decode()


def _open(marker: str, scope: str, secret: bytes) -> str:
    try:
        raw = base64.urlsafe_b64decode(marker.encode("ascii"))
        after = raw[_MAC_BYTES:].decode()
    except (ValueError, binascii.Error):
        raw, after = b"", ""
    if not hmac.compare_digest(raw[:_MAC_BYTES], _mac(after, scope, secret)):
        raise KmsError("InvalidMarkerException", "the marker is not one of this list")
    return after


def _mac(after: str, scope: str, secret: bytes) -> bytes:
    return hmac.digest(secret, f"{scope}\0{after}".encode(), "sha256")[:_MAC_BYTES]
