"""What an enclave has reserved.

Core: values only.
"""

from __future__ import annotations

from dataclasses import dataclass

from alcove.enclave.allocator import Allocation


@dataclass(frozen=True, slots=True)
class Record:
    """What an enclave has reserved; `memory_mib` in MiB, `process_id` is its supervisor's."""

    enclave_id: str
    name: str
    cid: int
    cpu_ids: tuple[int, ...]
    memory_mib: int
    process_id: int
    debug_mode: bool

    @property
    def allocation(self) -> Allocation:
        """CPUs and memory, as the allocator counts them."""
        return Allocation(self.cpu_ids, self.memory_mib)
