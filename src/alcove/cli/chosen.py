"""Which enclave a connection comes from, and whether it is one of those that were chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from alcove.enclave import registry
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.errors import UsageError

_KEPT_SECONDS: Final = 1.0  # a CID is not given to another enclave within it: a start takes longer


class Chosen:
    """Enclaves by name or id; without any, every enclave of this user.

    Args:
        paths: Where the registry is.
        wanted: Names and ids.
        clock: Seconds.
    """

    def __init__(self, paths: Paths, wanted: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._wanted = frozenset(wanted)
        self._clock = clock
        self._known: dict[int, Record] = {}
        self._looked = -_KEPT_SECONDS

    def record(self, cid: int) -> Record:
        """The enclave with this CID.

        Raises:
            UsageError: There is none, or it is not one of those that were chosen.
        """
        if cid not in self._known or self._clock() - self._looked >= _KEPT_SECONDS:
            self._known = {record.cid: record for record in registry.live(self._paths)}
            self._looked = self._clock()
        record = self._known.get(cid)
        if record is None:
            raise UsageError(f"no enclave of this user has CID {cid}")
        if self._wanted and not self._wanted & {record.name, record.enclave_id}:
            raise UsageError(f"the enclave `{record.name}` is not one of those that were chosen")
        return record

    def name(self, cid: int) -> str:
        """The name of the enclave with this CID; errors as of :meth:`record`."""
        return self.record(cid).name
