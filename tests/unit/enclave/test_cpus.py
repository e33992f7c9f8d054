"""Which CPUs enclaves get: topology, pools and their modes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.enclave.allocator import Allocation, Pool, allocate
from alcove.enclave.cpus import Topology
from alcove.enclave.pool import load_pool
from alcove.enclave.topology import read_topology
from alcove.errors import AlcoveError, MachineError

# two nodes of four cores of two threads, numbered as Linux numbers them: siblings are n and n + 8
SMT = Topology(
    tuple((cpu, cpu + 8) for cpu in range(8)),
    {0: frozenset({0, 1, 2, 3, 8, 9, 10, 11}), 1: frozenset({4, 5, 6, 7, 12, 13, 14, 15})},
)
TWO = Topology(((0,), (1,)), {0: frozenset({0, 1})})
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        (tmp_path / "allocator.yaml").write_text(text)
        return tmp_path

    return to_file


def fake_sys(root: Path) -> Path:
    for cpu in range(16):
        path = root / f"cpu/cpu{cpu}/topology"
        path.mkdir(parents=True)
        (path / "thread_siblings_list").write_text(f"{cpu % 8},{cpu % 8 + 8}\n")
    for node, text in ((0, "0-3,8-11"), (1, "4-7,12-15")):
        path = root / f"node/node{node}"
        path.mkdir(parents=True)
        (path / "cpulist").write_text(text + "\n")
    (root / "node/node2").mkdir()
    (root / "node/node2/cpulist").write_text("\n")  # memory without CPUs
    return root


def test_the_topology_is_read_from_sys(tmp_path: Path) -> None:
    """Siblings make cores, and nodes hold CPUs; CPUs that this process may not use are not there."""
    found = read_topology(fake_sys(tmp_path), range(16))
    assert found.cores == SMT.cores
    assert {number: cpus for number, cpus in found.nodes.items() if cpus} == SMT.nodes
    assert read_topology(tmp_path, [0, 1, 9]).cores == ((0,), (1, 9))


def test_without_sys_every_cpu_is_a_core_of_one_node(tmp_path: Path) -> None:
    """Containers may hide /sys."""
    assert read_topology(tmp_path, [0, 1]) == TWO


def test_this_machine_has_a_topology() -> None:
    """The real /sys can be read, and every CPU is in one core and one node."""
    found = read_topology()
    assert len(found.cpus) == len(set(found.cpus)) > 0
    assert sorted(cpu for node in found.nodes.values() for cpu in node) == list(found.cpus)


def test_cpu_0_and_its_sibling_stay_with_the_parent() -> None:
    """cli.md §3.3, whatever is asked for."""
    assert SMT.parents == (0, 8)
    eligible = [cpu for core in SMT.eligible for cpu in core]
    assert set(eligible) == set(SMT.cpus) - {0, 8}
    assert SMT.choose(16, eligible) is None


def test_cpus_are_whole_cores_of_one_node() -> None:
    """The node that is fullest serves first, so that room for a large enclave stays together."""
    assert SMT.choose(4, set(SMT.cpus) - {0, 8}) == (1, 2, 9, 10)  # node 0 has three cores left, node 1 four
    assert SMT.choose(8, set(SMT.cpus) - {0, 8}) == (4, 5, 6, 7, 12, 13, 14, 15)
    assert SMT.choose(10, set(SMT.cpus) - {0, 8}) is not None  # across nodes when no single one has enough
    assert SMT.choose(3, SMT.cpus) is None
    assert SMT.choose(2, {1, 2, 3}) is None  # three halves of cores


@given(st.sets(st.integers(0, 15)), st.integers(0, 17))
def test_a_choice_is_free_whole_and_as_large_as_asked(free: set[int], count: int) -> None:
    """Whatever is free, and it is found whenever there are enough whole cores."""
    chosen = SMT.choose(count, free)
    whole = [core for core in SMT.cores if set(core) <= free]
    if chosen is None:
        assert count == 0 or count % 2 or count > 2 * len(whole)
    else:
        assert len(chosen) == count
        assert set(chosen) <= {cpu for core in whole for cpu in core}
        assert all(set(core) <= set(chosen) or not set(core) & set(chosen) for core in SMT.cores)


def test_a_counted_pool_leaves_the_parent_its_core(write: Write) -> None:
    """cpu_count takes whole cores of one node; the mode follows from what the machine can."""
    config = write("memory_mib: 512\ncpu_count: 4\nmax_enclaves: 9\n")
    pool = load_pool(config, topology=SMT)
    assert (pool.cpus, pool.memory_mib, pool.max_enclaves) == ((1, 2, 9, 10), 512, 9)
    assert (pool.mode, pool.apart) == ("exclusive", True)


def test_a_listed_pool_is_taken_as_it_is(write: Write) -> None:
    """cpu_pool, in the kernel's form."""
    assert load_pool(write("---\nmemory_mib: 512\ncpu_pool: 2,10,5-5,13\n"), topology=SMT).cpus == (2, 5, 10, 13)


@pytest.mark.parametrize(
    ("text", "machine", "why"),
    [
        ("cpu_count: 2", TWO, r"CPU\(s\) \[0\] stay with the parent"),
        ("cpu_pool: 0-1,8-9", SMT, r"CPU\(s\) \[0, 8\] stay with the parent"),
        ("cpu_pool: 1,2", SMT, r"CPU\(s\) \[1, 2\] are not whole cores"),
        ("cpu_count: 2", SMT, "no such thing"),
    ],
)
def test_what_cannot_be_exclusive_is_shared_and_says_why(write: Write, text: str, machine: Topology, why: str) -> None:
    """Without an order, and an error with one: nothing pretends."""
    reason = "no such thing" if why == "no such thing" else None
    pool = load_pool(write(f"memory_mib: 64\n{text}\n"), topology=machine, obstacle=lambda _: reason)
    assert pool.mode == "shared"
    with pytest.raises(AlcoveError, match=f"exclusive mode cannot be had: {why}") as caught:
        load_pool(write(f"memory_mib: 64\n{text}\nmode: exclusive\n"), topology=machine, obstacle=lambda _: reason)
    assert caught.value.code == "E29"
    assert "mode: shared" in str(caught.value.hint)


def test_shared_mode_may_be_ordered(write: Write) -> None:
    """Even where the machine could do more; the pool still gives each CPU to one enclave."""
    pool = load_pool(write("memory_mib: 64\ncpu_count: 2\nmode: shared\n"), topology=SMT)
    assert (pool.mode, pool.why, pool.apart) == ("shared", "allocator.yaml says so", True)


@pytest.mark.parametrize(
    "text",
    [
        "memory_mib: 64\ncpu_pool: 99",
        "memory_mib: 64\ncpu_count: 17",
        "memory_mib: 64\ncpu_count: 0",
        "memory_mib: 999999999\ncpu_count: 1",
        "memory_mib: 64\ncpu_count: 1\nmode: solo",
        "memory_mib: ٣\ncpu_count: 1",
        "memory_mib: 64\ncpu_count: 1\nmax_enclaves: -1",
    ],
)
def test_a_pool_that_the_machine_lacks_is_e03(write: Write, text: str) -> None:
    """CPUs and memory that are not there, and words that mean nothing, are refused before any enclave is."""
    with pytest.raises(AlcoveError) as caught:
        load_pool(write(text), topology=SMT)
    assert caught.value.code == "E03"


def test_without_a_file_the_machine_is_shared(tmp_path: Path) -> None:
    """Nothing is taken from anybody unasked."""
    pool = load_pool(tmp_path, topology=TWO)
    assert (pool.cpus, pool.mode, pool.apart) == ((0, 1), "shared", False)
    assert "allocator.yaml" in pool.why


EXCLUSIVE = Pool((1, 2, 3, 9, 10, 11), 1024, mode="exclusive", apart=True, topology=SMT)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"cpu_count": 3}, "whole cores"),
        ({"cpu_count": 6}, "4 of the pool are free"),
        ({"cpu_ids": [2]}, r"CPU\(s\) \[2\] are not whole cores"),
        ({"cpu_ids": [1, 9]}, "another enclave's"),
    ],
)
def test_exclusive_cpus_are_whole_and_nobody_elses(arguments: dict[str, object], text: str) -> None:
    """The driver's errors 256, 269 and 272, which surface as E29."""
    with pytest.raises(AlcoveError, match=text) as caught:
        allocate(EXCLUSIVE, [Allocation((1, 9), 64)], image_bytes=1, memory_mib=64, **arguments)  # type: ignore[arg-type]
    assert caught.value.code == "E29"


@given(st.lists(st.tuples(st.booleans(), st.sampled_from((2, 4, 6)), st.integers(64, 700)), max_size=60))
def test_no_sequence_of_starts_and_ends_leaks_the_pool(steps: list[tuple[bool, int, int]]) -> None:
    """No CPU is anybody's twice, memory never exceeds the pool, and when all have ended everything is there again."""
    running: list[Allocation] = []
    for start, cpus, memory in steps:
        if start:
            with contextlib.suppress(MachineError):  # the pool is full
                running.append(allocate(EXCLUSIVE, running, image_bytes=1, memory_mib=memory, cpu_count=cpus))
        elif running:
            del running[cpus % len(running)]
        taken = [cpu for each in running for cpu in each.cpu_ids]
        assert len(taken) == len(set(taken))
        assert set(taken) <= set(EXCLUSIVE.cpus)
        assert sum(each.memory_mib for each in running) <= EXCLUSIVE.memory_mib
        assert len(running) <= EXCLUSIVE.max_enclaves
    assert len(allocate(EXCLUSIVE, [], image_bytes=1, memory_mib=1024, cpu_count=6).cpu_ids) == 6
