"""Which enclave a connection comes from, and whether it is one of those that were chosen."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Final

from alcove.enclave import control, registry
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.errors import UsageError

_KEPT_SECONDS: Final = 1.0  # a CID is not given to another enclave within it: a start takes longer


class Chosen:
    """Enclaves by name or id; without any, every enclave of this user.

    Args:
        paths: Where the registry is.
        wanted: Names and ids.
        pcr0: The measurement that their image must have, in hex; then those in debug mode are none of them.
        clock: Seconds.

    Raises:
        UsageError: `pcr0` is no measurement.
    """

    def __init__(
        self,
        paths: Paths,
        wanted: Sequence[str],
        *,
        pcr0: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if pcr0 is not None and not re.fullmatch(r"[0-9a-fA-F]{96}", pcr0):
            raise UsageError("PCR0 is 96 hex digits", hint="`describe-eif` shows it")
        self._pcr0 = pcr0.lower() if pcr0 else None
        self._measured: dict[str, str] = {}  # what runs in an enclave does not change
        self._paths = paths
        self._wanted = frozenset(wanted)
        self._clock = clock
        self._known: dict[int, Record] = {}
        self._looked = -_KEPT_SECONDS

    def record(self, cid: int) -> Record:
        """The enclave with this CID.

        Raises:
            UsageError: There is none, or it is not one of those that were chosen.
            MachineError: It does not answer.
        """
        if cid not in self._known or self._clock() - self._looked >= _KEPT_SECONDS:
            self._known = {record.cid: record for record in registry.live(self._paths)}
            self._looked = self._clock()
        record = self._known.get(cid)
        if record is None:
            raise UsageError(f"no enclave of this user has CID {cid}")
        if self._wanted and not self._wanted & {record.name, record.enclave_id}:
            raise UsageError(f"the enclave `{record.name}` is not one of those that were chosen")
        if self._pcr0 is not None and (record.debug_mode or self._measure(record) != self._pcr0):
            raise UsageError(f"the enclave `{record.name}` is in debug mode, or does not run the image that was named")
        return record

    def _measure(self, record: Record) -> str:
        if record.enclave_id not in self._measured:
            answer = control.ask(self._paths.enclave(record.enclave_id).control, "describe")
            self._measured[record.enclave_id] = str(answer["Measurements"]["PCR0"])
        return self._measured[record.enclave_id]

    def name(self, cid: int) -> str:
        """The name of the enclave with this CID; errors as of :meth:`record`."""
        return self.record(cid).name
