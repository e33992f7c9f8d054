"""The arithmetic of the benchmarks. Nothing here is timed."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))  # the repository's root: benchmarks is no part of the package

from benchmarks import harness, process
from benchmarks.harness import Case, Report, Result, at_least, at_most, measure, ratios, table
from benchmarks.images import write_layout, write_tiny_files
from benchmarks.process import Cost, FailedError, run, tree_memory


def result(*times: float, size: int = 0) -> Result:
    return Result("case", tuple(Cost(time, cpu=2 * time) for time in times), size)


def test_the_best_round_is_what_counts() -> None:
    """Throughput is bytes by the least time; the row has the median and the worst beside it."""
    found = result(4, 2, 3, size=8 << 20)
    assert found.throughput == (8 << 20) / 2
    assert found.row() == {"case": "case", "min s": 2, "median s": 3, "max s": 4, "cpu s": 4, "MiB/s": 4}
    assert "MiB/s" not in result(1).row()


def test_ratios_are_by_round() -> None:
    """Ours by theirs, of the same round."""
    assert ratios(result(3, 1), result(2, 4)) == [1.5, 0.25]


def test_cases_alternate_and_take_turns_to_be_first() -> None:
    """Every case runs once a round; the order turns round."""
    order: list[str] = []

    def once(name: str) -> Callable[[], Cost]:
        def add() -> Cost:
            order.append(name)
            return Cost(len(order))

        return add

    found = measure([Case("a", once("a")), Case("b", once("b"), 5)], 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [(one.name, one.times, one.size) for one in found] == [("a", [1, 4, 5], 0), ("b", [2, 3, 6], 5)]


def test_a_limit_is_on_the_side_of_the_promise() -> None:
    """What is at most 1.2 may be 1.2; what is at least 0.5 may be 0.5."""
    assert [at_most("", value, 1.2).held for value in (1.19, 1.2, 1.21)] == [True, True, False]
    assert [at_least("", value, 0.5).held for value in (0.49, 0.5, 0.51)] == [False, True, True]


def test_a_table_is_aligned() -> None:
    """Numbers stand to the right, texts to the left, and a missing cell is empty."""
    rows = [{"name": "a", "n": 1}, {"name": "long", "n": 10, "more": "x"}]
    assert table(rows).splitlines() == [
        "| name |  n | more |",
        "| ---- | -: | ---- |",
        "| a    |  1 |      |",
        "| long | 10 | x    |",
    ]
    assert table([]) == ""


@pytest.mark.parametrize("limit", [1.0, 0.9])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_broken_promise_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], limit: float
) -> None:
    """The report says pass or FAIL, as text and as JSON, and names the machine."""

    def benchmark(_: argparse.Namespace) -> Report:
        return Report([result(1)], [at_most("time", 1.0, limit)], {"own": [{"x": 1}]}, ["remark"])

    monkeypatch.setattr(sys, "argv", ["x", *flags])
    assert harness.main("x", "", benchmark, lambda _: None) == (limit < 1)
    out = capsys.readouterr().out
    for part in ("FAIL" if limit < 1 else "pass", "remark", "own", "kernel", "processor", "cores"):
        assert part in out
    if flags:
        assert json.loads(out)["results"][0]["times s"] == [1]


def test_a_program_that_fails_is_not_a_measurement() -> None:
    """Its last words are the error."""
    with pytest.raises(FailedError, match=r"status 3: broken"):
        run([sys.executable, "-c", "import sys; print('broken', file=sys.stderr); sys.exit(3)"])


def test_what_a_program_reads_and_prints_is_told(tmp_path: Path) -> None:
    """Bytes read are the program's own, and its output is kept."""
    path = tmp_path / "data"
    path.write_bytes(bytes(3 << 20))
    cost = run([sys.executable, "-c", f"print(len(open({str(path)!r}, 'rb').read()))"])
    assert cost.output == b"3145728\n"
    if os.access(f"/proc/{os.getpid()}/io", os.R_OK):
        assert 3 << 20 <= cost.read < 4 << 20


def test_the_memory_of_children_counts() -> None:
    """Two processes of 60 MiB each are a tree of 120 MiB, though neither alone is."""
    child = "b = bytearray(60 << 20); b[::4096] = b'x' * len(b[::4096])"
    there = f"{child}; print(flush=True); input()"
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {there!r}], stdin=-1, stdout=-1);"
    wait = "import time; p.stdout.readline(); time.sleep(1.5); p.communicate(b'x')"
    cost = run([sys.executable, "-c", f"{parent} {child}; {wait}"], sample=True)
    assert 120 << 20 <= cost.memory < 220 << 20


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    """A root that ended is no error."""
    assert tree_memory([2**22 + 1]) == 0
    assert tree_memory([os.getpid()]) > 1 << 20
    assert process.tree_memory([]) == 0


def layers_of(layout: Path) -> Iterator[tuple[bytes, str]]:
    """Each layer as a plain tar, and its diff_id; the digests of all blobs are checked."""
    blobs = layout / "blobs" / "sha256"
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in blobs.iterdir())

    def blob(descriptor: dict[str, str]) -> bytes:
        return (blobs / descriptor["digest"].removeprefix("sha256:")).read_bytes()

    manifest = json.loads(blob(json.loads((layout / "index.json").read_text())["manifests"][0]))
    diff_ids = json.loads(blob(manifest["config"]))["rootfs"]["diff_ids"]
    for descriptor, diff_id in zip(manifest["layers"], diff_ids, strict=True):
        data = blob(descriptor)
        yield gzip.decompress(data) if descriptor["mediaType"].endswith("gzip") else data, diff_id


def files_of(data: bytes) -> list[tarfile.TarInfo]:
    """The members of a tar."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


@pytest.mark.parametrize("options", [{}, {"gzip": True}, {"gzip": True, "text": True}])
def test_a_layout_is_sound_and_as_large_as_asked(tmp_path: Path, options: dict[str, bool]) -> None:
    """Its digests are right, its files add up to its size, and it is the same each time."""
    size = 3 << 20
    count = write_layout(tmp_path / "one", size, **options)
    write_layout(tmp_path / "two", size, **options)
    assert (tmp_path / "one" / "index.json").read_bytes() == (tmp_path / "two" / "index.json").read_bytes()
    layers = list(layers_of(tmp_path / "one"))
    for data, diff_id in layers:
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == diff_id
    members = [member for data, _ in layers for member in files_of(data)]
    assert len({member.name for member in members}) == len(members) == count
    assert sum(member.size for member in members) == pytest.approx(size, abs=8)


def test_a_layout_of_empty_files_has_them(tmp_path: Path) -> None:
    """As many names as asked for."""
    write_tiny_files(tmp_path / "layout", 250)
    ((data, _),) = layers_of(tmp_path / "layout")
    assert [member.size for member in files_of(data)] == [0] * 250
