"""Whatever a supervisor dies of, what it had is there for the next: real processes, locks and signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from alcove.enclave import registry
from alcove.enclave.allocator import Pool, allocate
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.errors import AlcoveError

POOL = Pool((0, 1, 2), 512, max_enclaves=3, apart=True)
Step = tuple[Literal["start", "end", "kill"], int, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(("start", "start", "end", "kill")), st.integers(1, 3), st.integers(64, 300)), max_size=10
)


@dataclass
class Owner:
    """A process that holds a reservation, as a supervisor does; it ends in order when it gets a byte."""

    process: int
    pipe: int
    enclave_id: str

    def end(self, how: str) -> None:
        """In order, or by SIGKILL."""
        if how == "kill":
            os.kill(self.process, signal.SIGKILL)
        else:  # a byte, since processes started later hold the pipe open too
            os.write(self.pipe, b"x")
        os.close(self.pipe)
        os.waitpid(self.process, 0)


def record(enclave_id: str, cpus: int, memory_mib: int, others: list[Record]) -> Record:
    taken = [other.allocation for other in others]
    given_ = allocate(POOL, taken, image_bytes=1, memory_mib=memory_mib, cpu_count=cpus)
    cid = registry.free_cid(None, others)
    return Record(enclave_id, enclave_id, cid, given_.cpu_ids, given_.memory_mib, os.getpid(), debug_mode=False)


def hold(paths: Paths, enclave_id: str, decide: Callable[[list[Record]], Record], answer: int, life: int) -> None:
    """Reserve, say whether it worked, and wait for the end."""
    try:
        _, lock = registry.reserve(paths, enclave_id, decide)
    except AlcoveError as error:
        os.write(answer, json.dumps(error.code).encode() + b"\n")
        return
    os.write(answer, b"null\n")
    os.read(life, 1)
    shutil.rmtree(paths.enclave(enclave_id).directory)
    lock.close()


def start(paths: Paths, enclave_id: str, cpus: int, memory_mib: int) -> Owner | None:
    """A new owner, or None when the pool refused it."""
    answer_read, answer_write = os.pipe()
    life_read, life_write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(life_write)
        try:
            decide = partial(record, enclave_id, cpus, memory_mib)
            hold(paths, enclave_id, decide, answer_write, life_read)
        finally:
            os._exit(0)
    os.close(answer_write)
    os.close(life_read)
    with os.fdopen(answer_read) as answer:
        code = json.loads(answer.readline())
    owner = Owner(process, life_write, enclave_id)
    if code is None:
        return owner
    owner.end("kill")
    assert code in {"E27", "E29"}
    return None


@settings(max_examples=10, deadline=None)
@given(STEPS)
def test_no_sequence_of_starts_ends_and_kills_leaks_the_pool(steps: list[Step]) -> None:
    """After every step the registry lists exactly who lives, no CPU twice; at the end the whole pool is free."""
    base = Path(tempfile.mkdtemp(prefix="alcove-pool-"))
    paths = Paths(base / "state", base / "run", base / "config")
    owners: list[Owner] = []
    try:
        for number, (what, cpus, memory_mib) in enumerate(steps):
            if what == "start":
                owner = start(paths, f"i-{number:017x}-enc{number:016x}", cpus, memory_mib)
                owners += [owner] if owner else []
            elif owners:
                owners.pop(cpus % len(owners)).end(what)
            living = registry.live(paths)
            assert {each.enclave_id for each in living} == {each.enclave_id for each in owners}
            taken = [cpu for each in living for cpu in each.cpu_ids]
            assert len(taken) == len(set(taken))
            assert sum(each.memory_mib for each in living) <= POOL.memory_mib
        while owners:
            owners.pop().end("kill")
        whole = start(paths, f"i-{0:017x}-enc{'f' * 16}", 3, 512)
        assert whole is not None
        whole.end("end")
        assert list(paths.enclaves.iterdir()) == []
    finally:
        for owner in owners:
            owner.end("kill")
        shutil.rmtree(base)
