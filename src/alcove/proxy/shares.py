"""How many connections each of several owners may have, so that none of them takes all.

Core: names in, decisions out.

An owner may have as many as are free still. One alone has half of all at most, a second one half of the rest, and so
on: there is always a place for who comes next, and no number has to be chosen for how many will come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable


class Shares:
    """The places of a service, of which there are `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[Hashable] = Counter()
        self._total = 0

    def take(self, owner: Hashable) -> bool:
        """Take a place; False when the owner has as many as are left."""
        if self._taken.get(owner, 0) >= self._limit - self._total:
            return False
        self._taken[owner] += 1
        self._total += 1
        return True

    def give(self, owner: Hashable) -> None:
        """Give a place back."""
        self._total -= 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]
