"""How the cases say what is expected of a verifier."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from vectors.attestation import world
from vectors.collection import Collection, Fields

Maker = Callable[[], bytes]


def asked(at: datetime | None = world.AT, **more: object) -> Fields:
    """What the verifier is given beside the document."""
    when = "document" if at is None else at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"root": world.fingerprint(world.root()), "at": when} | more


def verified(**more: object) -> Fields:
    """The document holds."""
    return {"expect": "verified"} | asked(**more)  # type: ignore[arg-type]


def invalid(step: int, **more: object) -> Fields:
    """The document does not hold; the step is that of the procedure."""
    return {"expect": "invalid", "step": step} | asked(**more)  # type: ignore[arg-type]


def unwelcome(**more: object) -> Fields:
    """The document holds, and does not say what it should."""
    return {"expect": "unwelcome", "step": 13} | asked(**more)  # type: ignore[arg-type]


def add(collection: Collection, name: str, comment: str, fields: Fields, make: Maker) -> None:
    """Put a case into a collection."""

    def maker() -> tuple[bytes, Fields]:
        return make(), dict(fields)

    maker.__name__, maker.__doc__ = name, comment
    collection(maker)
