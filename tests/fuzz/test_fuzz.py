"""Every fuzz target on its seeds, and for a few seconds under the fuzzer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
SECONDS = 1  # libFuzzer adds one, and a start takes one or two


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    """Every seed keeps its target's promise, cut short and with a byte changed too."""
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    for index, seed in enumerate(seeds):
        place = index * 37 % (len(seed) or 1)
        for data in (seed, seed[:place], seed[:place] + b"\xff" + seed[place + 1 :]):
            target.run(data)


NEEDS_ATHERIS = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine"
)


Outcome = tuple[subprocess.CompletedProcess[str], dict[str, str]]
Run = Future[Outcome]


def fuzz(argv: list[str], directory: Path, seconds: int = SECONDS) -> Outcome:
    """A bounded run in a process of its own, and what it saved: names and contents in hexadecimal."""
    limits = [f"-max_total_time={seconds}", "-runs=50000", "-seed=1", f"-artifact_prefix={directory}/"]
    environment = os.environ | {"TMPDIR": str(directory)}
    done = subprocess.run(
        [sys.executable, *argv, *limits], cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        errors="replace", timeout=300,
    )  # fmt: skip
    found = {path.name: path.read_bytes().hex() for path in directory.iterdir() if path.is_file()}
    assert set(found) == {path.name for path in directory.iterdir()}, "the corpus was left behind"
    return done, found


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """A run of each target that was asked for, as many at a time as there are processors."""
    asked = {item.name for item in request.session.items}
    chosen = [name for name in TARGETS if f"test_fuzz[{name}]" in asked]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(fuzz, ["-m", "tests.fuzz", name], tmp_path_factory.mktemp(name)) for name in chosen}


@NEEDS_ATHERIS
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name: str, runs: dict[str, Run]) -> None:
    """A bounded run finds no input that breaks the promise; one that does is shown in hexadecimal, and none is left."""
    done, found = runs[name].result()
    assert (done.returncode, found) == (0, {}), done.stderr[-4000:]
    assert "Done " in done.stderr


BROKEN = """
import sys
from tests.fuzz import __main__ as program
from tests.fuzz.targets import Target

def run(data):
    assert b"!" not in data

program.TARGETS["broken"] = Target(run, others=lambda: [b"EIF"])
program.main(["broken", *sys.argv[1:]])
"""


@NEEDS_ATHERIS
def test_the_fuzzer_finds_a_broken_promise(tmp_path: Path) -> None:
    """A target with a fault one byte away from its seed fails, and its input is saved: the fuzzer does fuzz."""
    done, found = fuzz(["-c", BROKEN], tmp_path, 60)  # it ends when it has found it
    assert done.returncode == 1
    ((name, content),) = found.items()
    assert name.startswith("crash-")
    assert b"!" in bytes.fromhex(content)
