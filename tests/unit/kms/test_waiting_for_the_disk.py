"""Answers and their records: how many wait for the disk together, and what happens when it fails (kms.md §24)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.kms.in_process import PEER, InProcess, in_process

from alcove.kms.audit import AuditLog, inspect_log
from alcove.kms.call import Answer
from alcove.kms.http import MAX_TOGETHER, KmsFace, Watch
from alcove.kms.metrics import Metrics
from alcove.kms.model import kms_model
from alcove.kms.service import Service
from alcove.kms.sts import Sts


class Desk:
    """A face on a real log, without a transport; `order` is of what was answered and of what reached the disk."""

    def __init__(self, kms: InProcess, log: AuditLog) -> None:
        def commit() -> None:
            before = log.head[0]
            log.commit()
            self.order.append(("disk", log.head[0] - before))

        self.kms = kms
        self.order: list[tuple[str, int]] = []
        service = Service(kms.tools, kms_model(), (), log.append, kms.clock)
        watch = Watch(Metrics(["GenerateRandom"]), lambda *_: None, lambda: True)
        self.face = KmsFace(service, Sts(kms.tools, log.append, kms.clock), commit, watch)

    def ask(self) -> None:
        """One request, in this turn of the loop."""
        request = self.kms.signed("GenerateRandom", json.dumps({"NumberOfBytes": 8}).encode())
        self.face.handle(request, PEER, self._take)

    def _take(self, answer: Answer) -> None:
        self.order.append(("answer", answer.status))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    """An audit log."""
    with contextlib.closing(AuditLog(tmp_path / "audit.jsonl")) as log:
        yield log


def served(directory: Path, log: AuditLog, turn: Callable[[Desk, int], bool]) -> list[tuple[str, int]]:
    """What happened, in its order, when `turn` was called in every turn of the loop until it returned False."""

    async def run() -> list[tuple[str, int]]:
        with in_process(directory) as kms:
            desk, number = Desk(kms, log), 0
            while turn(desk, number):
                number += 1
                await asyncio.sleep(0)
            for _ in range(5):
                await asyncio.sleep(0)
            return desk.order

    return asyncio.run(run())


def records(log: AuditLog) -> int:
    """How many there are in an unbroken log."""
    return inspect_log(log.path.read_bytes().splitlines(keepends=True)).records


def test_what_comes_turn_after_turn_goes_to_disk_together(tmp_path: Path, log: AuditLog) -> None:
    """One wait for all, and every answer after it; what comes after a turn without any waits by itself."""

    def turn(desk: Desk, number: int) -> bool:
        if number in {0, 1, 2, 9}:
            desk.ask()
        return number < 9

    together = [("disk", 3), *[("answer", 200)] * 3]
    assert served(tmp_path, log, turn) == [*together, ("disk", 1), ("answer", 200)]
    assert records(log) == 4


def test_nobody_waits_for_ever(tmp_path: Path, log: AuditLog) -> None:
    """When requests come in every turn, the first ones are answered all the same."""

    def turn(desk: Desk, number: int) -> bool:
        desk.ask()
        return number < 2 * MAX_TOGETHER

    order = served(tmp_path, log, turn)
    disk = [number for what, number in order if what == "disk"]
    assert len(disk) > 1
    assert max(disk) <= MAX_TOGETHER + 1
    assert sum(disk) == records(log) == 2 * MAX_TOGETHER + 1
    for place, (what, number) in enumerate(order):
        assert what == "answer" or order[place + 1 : place + 1 + number] == [("answer", 200)] * number


def test_what_cannot_be_recorded_fails(tmp_path: Path, log: AuditLog) -> None:
    """All that was to go together; nothing of it stays in the file, and the chain goes on when there is room again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def turn(desk: Desk, number: int) -> bool:
        if number in {0, 10, 11, 20}:
            desk.ask()
        if number == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 1200, hard))
        if number == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert records(log) == 1
        return number < 20

    try:
        order = served(tmp_path, log, turn)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert order == [("disk", 1), ("answer", 200), *[("answer", 500)] * 2, ("disk", 1), ("answer", 200)]
    assert records(log) == 2
    assert not log.broken


def test_what_does_not_become_durable_fails(tmp_path: Path, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written is not enough: when the disk reports an error afterwards, the records are taken back."""
    real = os.fdatasync

    def failing(file: int) -> None:
        real(file)
        monkeypatch.undo()
        raise OSError(5, "Input/output error")

    def turn(desk: Desk, number: int) -> bool:
        if number in {0, 1, 10}:
            desk.ask()
        if number == 0:
            monkeypatch.setattr(os, "fdatasync", failing)
        return number < 10

    order = served(tmp_path, log, turn)
    assert order == [*[("answer", 500)] * 2, ("disk", 1), ("answer", 200)]
    assert records(log) == 1
