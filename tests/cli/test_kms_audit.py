"""``alcove kms audit verify`` over the logs of several workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.test_kms import Machine, client
from tests.cli.test_kms_serve import credentials, replaced

pytestmark = pytest.mark.slow

ENOUGH = 3  # records in each log


def lines_of(log: Path) -> list[bytes]:
    return log.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def logs(machine: Machine) -> list[Path]:
    """The logs of two workers, each with some records: the kernel spreads connections."""
    found = [machine.kms / "kms.audit.jsonl", machine.kms / "kms.audit.2.jsonl"]
    with machine.serving("--workers", "2") as url:
        for number in range(1, 400):
            client(url, credentials(machine)).generate_random(NumberOfBytes=number)
            if all(log.exists() and len(lines_of(log)) >= ENOUGH for log in found):
                return found
    raise AssertionError("one worker has answered everything")


def test_whole_logs(machine: Machine, logs: list[Path]) -> None:
    """Each is a chain of its own, and all of them are shown, in text and in JSON; --head is of one of them."""
    found = json.loads(machine.out("audit", "verify", "--json"))["Logs"]
    assert {log["File"]: log["Records"] for log in found} == {str(log): len(lines_of(log)) for log in logs}
    printed = machine.out("audit", "verify").splitlines()
    assert sorted(printed) == sorted(
        f"{log['File']}: {log['Records']} records, unbroken; head {log['Head']}" for log in found
    )
    assert "is of one log" in machine.fails("audit", "verify", "--head", found[0]["Head"])
    with machine.serving("--workers", "1") as url:  # fewer workers: the other's log stays what it is
        client(url, credentials(machine)).generate_random(NumberOfBytes=1)
    assert len(machine.out("audit", "verify").splitlines()) == 2


@pytest.mark.parametrize("which", [0, 1])
def test_a_change_of_either_is_seen(machine: Machine, logs: list[Path], which: int) -> None:
    """Altered, cut at the end, emptied or taken away; the log and the first record that is wrong are named."""
    log = logs[which]
    kept = log.read_bytes()
    lines = lines_of(log)
    altered = replaced(lines, 2, json.loads(lines[1]) | {"eventName": "Encrypt"})
    last = json.loads(lines[-1]) | {"userAgent": "another"}
    cases = [
        ("altered", b"".join(altered), f"{log} is broken: record 3 does not follow"),
        ("the last one altered", b"".join(replaced(lines, len(lines), last)), "is not the one that was noted"),
        ("cut at the end", b"".join(lines[:-1]), f"{log} is broken: record {len(lines)} is missing"),
        ("emptied", b"", f"{log} is broken: record {len(lines)} is missing"),
        ("taken away", None, f"{log} is missing: the store knows of {len(lines)} records in it"),
    ]
    try:
        for name, content, words in cases:
            log.unlink() if content is None else log.write_bytes(content)
            assert words in machine.fails("audit", "verify"), name
    finally:
        log.write_bytes(kept)
    assert len(machine.out("audit", "verify").splitlines()) == 2
