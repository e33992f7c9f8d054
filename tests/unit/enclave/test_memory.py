"""What an enclave's memory is made of."""

from __future__ import annotations

import pytest

from alcove.enclave.isolation import free_huge_pages, lock_obstacle
from alcove.enclave.memory import plan_memory
from alcove.errors import MachineError
from alcove.machine.spec import GuestMemory

NO_LOCK = "the limit of locked memory is 64 KiB and cannot be raised"


def test_shared_memory_is_ordinary() -> None:
    """Whatever the machine has."""
    assert plan_memory(100, exclusive=False, huge_pages={2: 999}, lock_obstacle=None) == (100, GuestMemory())


@pytest.mark.parametrize(
    ("asked", "free", "given", "page"),
    [
        (512, {2: 256}, 512, 2),
        (511, {2: 256}, 512, 2),  # rounds up to whole pages (cli.md §3.3)
        (2048, {2: 4096, 1024: 2}, 2048, 1024),  # the largest first
        (1000, {2: 4096, 1024: 2}, 1000, 2),  # but not a page of which part would be wasted
        (2048, {2: 4096, 1024: 1}, 2048, 2),
    ],
)
def test_exclusive_memory_comes_from_huge_pages(asked: int, free: dict[int, int], given: int, page: int) -> None:
    """The largest that fit, and only when there are enough."""
    assert plan_memory(asked, exclusive=True, huge_pages=free, lock_obstacle=NO_LOCK) == (given, GuestMemory(page))


@pytest.mark.parametrize("free", [{}, {2: 0}, {2: 255}])
def test_else_it_is_locked_or_refused(free: dict[int, int]) -> None:
    """With the right to lock, locked; without, E27, which names both ways out."""
    assert plan_memory(512, exclusive=True, huge_pages=free, lock_obstacle=None) == (512, GuestMemory(locked=True))
    with pytest.raises(MachineError, match="cannot be raised") as caught:
        plan_memory(512, exclusive=True, huge_pages=free, lock_obstacle=NO_LOCK)
    assert caught.value.code == "E27"
    assert "vm.nr_hugepages" in str(caught.value.hint)


def test_this_machine_says_what_it_has() -> None:
    """Free huge pages are never negative; locking is possible, or there is a reason."""
    assert all(page > 0 and free >= 0 for page, free in free_huge_pages().items())
    why = lock_obstacle()
    assert why is None or "cannot be raised" in why
