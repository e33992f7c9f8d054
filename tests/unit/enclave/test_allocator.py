from __future__ import annotations

from typing import Any

import pytest

from alcove.enclave.allocator import Allocation, Pool, allocate, required_mib
from alcove.enclave.cpulist import parse_cpu_list
from alcove.enclave.pool import load_pool
from alcove.errors import AlcoveError, UsageError

MIB = 1024 * 1024
POOL = Pool(cpus=(0, 1), memory_mib=2048)


def test_memory_is_at_least_four_times_the_image_and_64_mib() -> None:
    """cli.md §3.3: 4 × the image, rounded up, and never below the driver's minimum."""
    assert required_mib(1) == 64
    assert required_mib(20 * MIB) == 80
    assert required_mib(20 * MIB + 1) == 81


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"cpu_count": 1, "memory_mib": 63}, "E26"),
        ({"cpu_count": 1, "memory_mib": 0}, "E26"),
        ({"cpu_count": 1, "memory_mib": 4096}, "E27"),
        ({"cpu_count": 3, "memory_mib": 64}, "E22"),
        ({"cpu_count": 0, "memory_mib": 64}, "E29"),
        ({"cpu_ids": [], "memory_mib": 64}, "E29"),
        ({"cpu_ids": [1, 1], "memory_mib": 64}, "E20"),
        ({"cpu_ids": [7], "memory_mib": 64}, "E21"),
    ],
)
def test_refusals_have_aws_codes(arguments: dict[str, Any], code: str) -> None:
    """cli.md §5.2: every rule of §3.3 has its code."""
    with pytest.raises(AlcoveError) as caught:
        allocate(POOL, [], image_bytes=1, **arguments)
    assert caught.value.code == code
    assert caught.value.exit_status == int(code[1:])


def test_memory_of_others_counts() -> None:
    """The pool's memory is shared out, not promised twice."""
    taken = [Allocation((0,), 1536)]
    assert allocate(POOL, taken, image_bytes=1, memory_mib=512, cpu_count=1).memory_mib == 512
    with pytest.raises(AlcoveError, match="512 MiB are free"):
        allocate(POOL, taken, image_bytes=1, memory_mib=513, cpu_count=1)


def test_the_least_used_cpu_is_chosen() -> None:
    """Shared mode spreads enclaves over the CPUs."""
    taken = [Allocation((0,), 64)]
    assert allocate(POOL, taken, image_bytes=1, memory_mib=64, cpu_count=1).cpu_ids == (1,)


def test_the_number_of_enclaves_is_limited() -> None:
    """cli.md §3.3: four enclaves by default."""
    taken = [Allocation((0,), 64)] * 4
    with pytest.raises(AlcoveError, match="4 enclaves run already"):
        allocate(POOL, taken, image_bytes=1, memory_mib=64, cpu_count=1)


def test_cpu_lists_read_like_the_kernels() -> None:
    """cli.md §3.6: numbers and ranges."""
    assert parse_cpu_list("2,3,6-9") == [2, 3, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("text", "code"), [("0-3-7", "E24"), ("a", "E23"), ("", "E23"), ("1,-3", "E23"), ("6-2", "E24")]
)
def test_bad_cpu_lists_have_their_codes(text: str, code: str) -> None:
    """cli.md §5.2: E23 and E24."""
    with pytest.raises(UsageError) as caught:
        parse_cpu_list(text)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("memory_mib: 512\ncpu_count: 2\ncpu_pool: 1", "E02"),
        ("memory_mib: lots\ncpu_count: 1", "E03"),
        ("memory_mib: 64", "E01"),
        ("cpu_count: 1", "E01"),
        ("cpu_count: 1\nmemory_mib: 1\nhuge: yes", "E17"),
        ("- 1", "E17"),
        ("{", "E19"),
    ],
)
def test_bad_allocator_files_have_their_codes(tmp_path: Any, text: str, code: str) -> None:
    """allocator.yaml: each mistake is named, none is ignored."""
    (tmp_path / "allocator.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_pool(tmp_path)
    assert caught.value.code == code
