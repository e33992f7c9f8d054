"""Scattered buffers: what the segments of a chain hold, whatever their cut (devices.md §5.2).

Core: views in, views out.
"""

from __future__ import annotations

from collections.abc import Sequence


def total(segments: Sequence[memoryview]) -> int:
    """Bytes in all segments together."""
    return sum(map(len, segments))


def gather(segments: Sequence[memoryview], length: int) -> bytes:
    """A copy of the first `length` bytes, or of fewer if there are fewer."""
    if segments and len(segments[0]) >= length:
        return bytes(segments[0][:length])
    return b"".join(clip(segments, 0, length))


def scatter(segments: Sequence[memoryview], data: bytes) -> None:
    """Write `data` to the segments, which must be large enough."""
    at = 0
    for segment in segments:
        part = data[at : at + len(segment)]
        segment[: len(part)] = part
        at += len(part)


def clip(segments: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """Views of `length` bytes from `start`, or of fewer if there are fewer; nothing is copied."""
    views: list[memoryview] = []
    for segment in segments:
        if length <= 0:
            break
        if start >= len(segment):
            start -= len(segment)
            continue
        part = segment[start : start + length]
        views.append(part)
        length -= len(part)
        start = 0
    return views
