"""`build-enclave` from a local OCI layout: throughput against `openssl dgst -sha384` over the same bytes, and memory.

The bytes are those of the application ramdisk, which is what the image holds when it is unpacked. All input is in the
page cache; output goes to a new file on the disk and is synced (fsync), which is part of the time. Layers are measured
plain, as gzip of random bytes, and as gzip of text: inflating text is work that openssl is not asked to do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import MIB, Case, Promise, Report, Result, at_least, at_most, command, main, measure, note
from benchmarks.images import apart, write_blobs, write_layout, write_tiny_files
from benchmarks.process import Cost, run

_PROGRAM = str(Path(sys.executable).parent / "nitro-cli")
_KINDS = {"plain": {}, "gzip": {"gzip": True}, "gzip, text": {"gzip": True, "text": True}}
_LIMIT = 200_000_000  # bytes: the promise on memory
_ENTRIES = (1_000, 101_000)


@dataclass(frozen=True, slots=True)
class Bench:
    """A directory with the boot files, and where images are made from layouts."""

    directory: Path

    @property
    def output(self) -> Path:
        """The image that the last build made."""
        return self.directory / "out.eif"

    def layout(self, kind: str, size: int, scale: float = 1) -> Path:
        """An OCI layout of that kind, of `size` MiB when unpacked; made when it is not there yet."""
        path = self.directory / f"{kind.replace(', ', '-')}-{size}"
        if not path.exists():
            note(f"writing a layout: {kind}, {size} MiB")
            count = apart(write_layout, path, size * MIB, scale=scale, **_KINDS[kind])
            note(f"  {count} files")
        return path

    def build(self, layout: Path, *, sample: bool = False) -> Cost:
        """Build an image from a layout, as a new file."""
        self.output.unlink(missing_ok=True)
        argv = [_PROGRAM, "build-enclave", "--docker-uri", f"oci:{layout}", "--blobs", str(self.directory / "blobs")]
        environment = {"TMPDIR": str(self.directory)}
        return run([*argv, "--output-file", str(self.output)], environment=environment, sample=sample)


def benchmark(arguments: argparse.Namespace) -> Report:
    """Build and digest in turn; then build again at other sizes, and watch the memory."""
    with tempfile.TemporaryDirectory(prefix="alcove-bench-", dir=arguments.dir) as directory:
        bench = Bench(Path(directory))
        apart(write_blobs, bench.directory / "blobs")
        layouts = {kind: bench.layout(kind, arguments.size) for kind in _KINDS}
        for layout in layouts.values():  # once before it counts; the last leaves the image that openssl reads
            bench.build(layout)
        size = bench.output.stat().st_size
        cases = [
            Case(f"build-enclave ({kind})", partial(bench.build, layout), size) for kind, layout in layouts.items()
        ]
        peer = bench.directory / "digest.eif"
        bench.output.rename(peer)
        cases.append(command("openssl dgst -sha384", ["openssl", "dgst", "-sha384", str(peer)], size=size))
        results = measure(cases, arguments.rounds)
        memory = {
            (kind, mib): bench.build(bench.layout(kind, mib, mib / arguments.size), sample=True)
            for kind, mib in _sizes(arguments.size)
        }
        entries = _entries(bench)
    rows = [{"layers": kind, "image MiB": mib, "peak MiB": _mib(cost)} for (kind, mib), cost in memory.items()]
    per_entry = (entries[1].memory - entries[0].memory) / (_ENTRIES[1] - _ENTRIES[0])
    remarks = [
        f"Memory for each entry of the image (from {_ENTRIES[0]} to {_ENTRIES[1]} empty files): {per_entry:.0f} bytes."
    ]
    return Report(
        results, [*_speed(results), *_memory(memory)], {"memory of the process tree, by bytes": rows}, remarks
    )


def _sizes(size: int) -> Iterator[tuple[str, int]]:
    """Kinds and sizes in MiB whose memory is measured: a quarter, the whole, and the double of the plain one.

    All have as many files as the whole: what a name costs in memory is measured by itself.
    """
    for kind, factors in (("plain", (1, 4, 8)), ("gzip", (1, 4))):
        for factor in factors:
            yield kind, max(1, size * factor // 4)


def _entries(bench: Bench) -> list[Cost]:
    """The cost of images of very many empty files."""
    costs = []
    for count in _ENTRIES:
        layout = bench.directory / f"entries-{count}"
        apart(write_tiny_files, layout, count)
        costs.append(bench.build(layout, sample=True))
    return costs


def _speed(results: list[Result]) -> list[Promise]:
    *builds, openssl = results
    return [
        at_least(f"throughput against openssl, best of each: {build.name}", build.throughput / openssl.throughput, 0.5)
        for build in builds
    ]


def _memory(memory: dict[tuple[str, int], Cost]) -> list[Promise]:
    peak = max(cost.memory for cost in memory.values())
    promises = [at_most("peak memory of the tree, MB, every size", peak / 1e6, _LIMIT / 1e6)]
    for kind in ("plain", "gzip"):
        small, *_, large = [cost.memory for (name, _), cost in memory.items() if name == kind]
        promises.append(at_most(f"memory of the largest against the smallest ({kind})", large / small, 1.15))
    return promises


def _mib(cost: Cost) -> Any:
    return round(cost.memory / MIB)


def options(parser: argparse.ArgumentParser) -> None:
    """Size and place."""
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the image; 1024 when not given")
    parser.add_argument("--dir", metavar="DIR", help="where all files go, some 8 × SIZE; the temporary directory")


if __name__ == "__main__":
    sys.exit(main("build_enclave", __doc__ or "", benchmark, options))
