"""Counts of requests by operation and outcome, and how long they took, for Prometheus (text format 0.0.4).

All workers of a server count into one piece of shared memory, each into its own part, so whoever is asked knows
everything and nobody waits for a lock. There are as many series as there are operations and outcomes, whatever clients
send: an operation that does not exist counts as `other`.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Callable, Sequence
from typing import Final

SUCCESS, DENIED, UNAUTHENTICATED, INVALID, FAULT = range(5)
OUTCOMES: Final = ("success", "denied", "unauthenticated", "invalid", "fault")
BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds
OTHER: Final = "other"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_DENIALS: Final = frozenset({"AccessDeniedException"})
_STRANGERS: Final = frozenset({
    "ExpiredTokenException", "IncompleteSignatureException", "InvalidSignatureException",
    "MissingAuthenticationTokenException", "UnrecognizedClientException",
})  # fmt: skip
_SUM: Final = len(OUTCOMES)  # in a row: requests by outcome, the sum of seconds, requests by bound and beyond
_BUCKETS: Final = _SUM + 1
_ROW: Final = _BUCKETS + len(BOUNDS) + 1


class Metrics:
    """The counts of all workers of a server; to be made before they are.

    Args:
        operations: The names that there are.
        workers: How many count.
    """

    def __init__(self, operations: Sequence[str], workers: int = 1) -> None:
        self._names = (*sorted(operations), OTHER)
        self._rows = {name: index for index, name in enumerate(self._names)}
        self._size = len(self._names) * _ROW
        self._workers = workers
        self._counts = memoryview(mmap.mmap(-1, self._size * workers * 8)).cast("d")

    def counter(self, worker: int) -> Callable[[str, int, float], None]:
        """What counts one answer of a worker: (operation, outcome, seconds)."""
        counts, rows, start = self._counts, self._rows, worker * self._size
        other = rows[OTHER]

        def count(operation: str, outcome: int, seconds: float) -> None:
            row = start + rows.get(operation, other) * _ROW
            counts[row + outcome] += 1
            counts[row + _SUM] += seconds
            counts[row + _BUCKETS + bisect.bisect_left(BOUNDS, seconds)] += 1

        return count

    def exposition(self) -> bytes:
        """Everything, as Prometheus reads it; operations that were never asked for are left out."""
        requests, times = [], []
        for index, name in enumerate(self._names):
            row = self._row(index)
            requests += [
                f'alcove_kms_requests_total{{operation="{name}",outcome="{outcome}"}} {int(value)}'
                for outcome, value in zip(OUTCOMES, row, strict=False)
                if value
            ]
            times += _histogram(name, row) if any(row) else []
        lines = [
            "# HELP alcove_kms_requests_total Requests that were answered.",
            "# TYPE alcove_kms_requests_total counter",
            *requests,
            "# HELP alcove_kms_request_seconds Time from a whole request to its answer, its audit record included.",
            "# TYPE alcove_kms_request_seconds histogram",
            *times,
        ]
        return ("\n".join(lines) + "\n").encode()

    def _row(self, index: int) -> list[float]:
        starts = [worker * self._size + index * _ROW for worker in range(self._workers)]
        return [sum(self._counts[start + column] for start in starts) for column in range(_ROW)]


def outcome_of(status: int, kind: str) -> int:
    """The outcome that an answer counts as.

    Args:
        status: Of HTTP.
        kind: AWS's class of the error, if it is one.
    """
    if status == 200:
        return SUCCESS
    if status >= 500:
        return FAULT
    return DENIED if kind in _DENIALS else UNAUTHENTICATED if kind in _STRANGERS else INVALID


def _histogram(name: str, row: Sequence[float]) -> list[str]:
    label, total, lines = f'operation="{name}"', 0, []
    for bound, value in zip((*(f"{bound:g}" for bound in BOUNDS), "+Inf"), row[_BUCKETS:], strict=True):
        total += int(value)
        lines.append(f'alcove_kms_request_seconds_bucket{{{label},le="{bound}"}} {total}')
    lines.append(f"alcove_kms_request_seconds_sum{{{label}}} {row[_SUM]:.6f}")
    lines.append(f"alcove_kms_request_seconds_count{{{label}}} {total}")
    return lines
