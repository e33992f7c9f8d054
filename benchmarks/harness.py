"""What a benchmark is made of: cases that run in turn, rounds, and promises that are held or broken.

A benchmark measures our program and what it is compared with in one run, in alternation, so that both meet the same
machine at the same moments. The least of several rounds counts: everything else that runs on a machine only adds.

    cases = [command("describe-eif", [...]), command("openssl", [...])]
    results = measure(cases, rounds=5)
    promise = at_most("time against openssl", results[0].best / results[1].best, 1.2)

Arithmetic only is tested (tests/unit/benchmarks): a timing is never a test.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks import machine
from benchmarks.process import Cost, FailedError, run

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure: `once` does it and says what it cost; `size` is the bytes it goes through, if any."""

    name: str
    once: Callable[[], Cost]
    size: int = 0


def command(name: str, argv: Sequence[str], *, size: int = 0, environment: Mapping[str, str] | None = None) -> Case:
    """A case that is a program."""
    return Case(name, partial(run, argv, environment=environment), size)


def in_process(name: str, function: Callable[[], object], *, size: int = 0) -> Case:
    """A case that is a function of this process."""

    def once() -> Cost:
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        return Cost(time.perf_counter() - wall, time.process_time() - cpu)

    return Case(name, once, size)


@dataclass(frozen=True, slots=True)
class Result:
    """The costs of a case, a round each."""

    name: str
    costs: tuple[Cost, ...]
    size: int = 0

    @property
    def times(self) -> list[float]:
        """Wall time of each round, in seconds."""
        return [cost.wall for cost in self.costs]

    @property
    def best(self) -> float:
        """The least wall time, in seconds."""
        return min(self.times)

    @property
    def throughput(self) -> float:
        """Bytes a second in the best round; 0 for a case without bytes."""
        return self.size / self.best

    def row(self) -> dict[str, Any]:
        """What the report says of it."""
        times = self.times
        least = min(self.costs, key=lambda cost: cost.wall)
        row: dict[str, Any] = {
            "case": self.name,
            "min s": round(min(times), 3),
            "median s": round(statistics.median(times), 3),
            "max s": round(max(times), 3),
            "cpu s": round(least.cpu, 3),
        }
        return row | ({"MiB/s": round(self.throughput / MIB)} if self.size else {})


def measure(cases: Sequence[Case], rounds: int) -> list[Result]:
    """Run the cases in turn, `rounds` times; the order turns round each time, so that none always comes first."""
    costs: dict[str, list[Cost]] = {case.name: [] for case in cases}
    for number in range(rounds):
        for case in cases if number % 2 == 0 else reversed(cases):
            note(f"round {number + 1} of {rounds}: {case.name}")
            costs[case.name].append(case.once())
    return [Result(case.name, tuple(costs[case.name]), case.size) for case in cases]


def ratios(ours: Result, theirs: Result) -> list[float]:
    """Our time divided by theirs, in each round."""
    return [mine / other for mine, other in zip(ours.times, theirs.times, strict=True)]


@dataclass(frozen=True, slots=True)
class Promise:
    """A number that must not pass a limit; `at_least` when it must not stay below."""

    text: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def held(self) -> bool:
        """Whether the number is on the right side; the limit itself is."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def row(self) -> dict[str, Any]:
        """What the report says of it."""
        sign = "≥" if self.at_least else "≤"
        return {
            "promise": self.text,
            "measured": round(self.value, 3),
            "limit": f"{sign} {self.limit:g}",
            "held": "pass" if self.held else "FAIL",
        }


def at_most(text: str, value: float, limit: float) -> Promise:
    """The promise that a number does not pass a limit."""
    return Promise(text, value, limit)


def at_least(text: str, value: float, limit: float) -> Promise:
    """The promise that a number reaches a limit."""
    return Promise(text, value, limit, at_least=True)


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found: results, tables of its own (rows of equal keys, by title), promises, remarks."""

    results: Sequence[Result]
    promises: Sequence[Promise]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    remarks: Sequence[str] = ()


def main(
    name: str,
    text: str,
    benchmark: Callable[[argparse.Namespace], Report],
    options: Callable[[argparse.ArgumentParser], object],
) -> int:
    """Run a benchmark as a program: print its report; status 0 when every promise is held, 1 when one is broken.

    Args:
        name: Of the benchmark.
        text: What it shows, for `--help`.
        benchmark: Does it.
        options: Adds its own options.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=text)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="5 when not given")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    options(parser)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files go, as on Ctrl-C
    before = machine.load()
    try:
        report = benchmark(arguments)
    except FailedError as error:
        note(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    facts = machine.describe() | {"load": f"{before:.2f} before, {machine.load():.2f} after"}
    if arguments.json:
        print(json.dumps(as_json(name, facts, report), indent=2, ensure_ascii=False))
    else:
        print(as_text(name, facts, report))
    return 0 if all(promise.held for promise in report.promises) else 1


def as_json(name: str, facts: Mapping[str, str], report: Report) -> dict[str, Any]:
    """The report as a JSON object."""
    return {
        "benchmark": name,
        "machine": dict(facts),
        "results": [result.row() | {"times s": result.times} for result in report.results],
        **{title: [dict(row) for row in rows] for title, rows in report.tables.items()},
        "promises": [promise.row() for promise in report.promises],
        "remarks": list(report.remarks),
    }


def as_text(name: str, facts: Mapping[str, str], report: Report) -> str:
    """The report as Markdown, which reads as well on a terminal."""
    parts = [f"### {name}", "; ".join(f"{key}: {value}" for key, value in facts.items())]
    parts.append(table([result.row() for result in report.results]))
    parts += [f"{title}:\n\n{table(rows)}" for title, rows in report.tables.items()]
    parts.append(table([promise.row() for promise in report.promises]))
    parts += report.remarks
    return "\n\n".join(part for part in parts if part) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table, columns aligned; numbers to the right. A row may lack a column."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    right = [all(isinstance(row.get(column, 0), int | float) for row in rows) for column in columns]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    rule = ["-" * (width - 1) + ":" if number else "-" * width for width, number in zip(widths, right, strict=True)]

    def line(texts: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(texts, widths, right, strict=True)
        )
        return f"| {' | '.join(aligned)} |"

    return "\n".join([line(columns), line(rule), *map(line, cells)])


def note(line: str) -> None:
    """Tell the person who waits."""
    print(line, file=sys.stderr, flush=True)
