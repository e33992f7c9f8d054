from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from alcove.enclave import ended, registry
from alcove.enclave.ended import Cause, End, end_of
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.enclave.report import Kind, Report

PANIC = b"[    9.1] Kernel panic - not syncing: sysrq triggered crash\r\n[    9.2] CPU: 0 PID: 1\r\n"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "state", tmp_path / "run", tmp_path / "config")
    registry.prepare(made)
    return made


def record(number: int = 0, *, debug_mode: bool = False) -> Record:
    return Record(f"i-0000000000000000a-enc{number:016x}", f"app{number}", 16 + number, (1,), 64, 4242, debug_mode)


@pytest.mark.parametrize(
    ("status", "report", "console", "cause", "exit_status"),
    [
        (0, Report(Kind.EXIT, 0), b"", Cause.EXITED, 0),
        (0, Report(Kind.EXIT, 7), b"", Cause.EXITED, 7),
        (0, Report(Kind.SIGNAL, 11), b"", Cause.SIGNALLED, 139),
        (0, Report(Kind.OOM, 9), b"", Cause.OUT_OF_MEMORY, 137),
        (0, Report(Kind.INIT, text="/rootfs"), b"", Cause.INIT_FAILED, None),
        (0, None, PANIC, Cause.PANIC, None),
        (0, None, b"", Cause.RESET, None),
        (1, None, b"", Cause.MACHINE, None),
        (-9, None, b"", Cause.KILLED, None),
        (137, Report(Kind.EXIT, 0), b"", Cause.KILLED, None),
    ],
)
def test_causes_are_told_apart(
    status: int, report: Report | None, console: bytes, cause: Cause, exit_status: int | None
) -> None:
    """Exit, signal, out of memory, panic, reset, a failing and a killed QEMU each have their own name."""
    end = end_of(status, "qemu: no such thing", report, console)
    assert (end.cause, end.exit_status) == (cause, exit_status)


def test_a_panic_is_named_in_the_kernels_words() -> None:
    """The line of the panic, without what follows it."""
    assert end_of(0, "", None, PANIC).reason == "Kernel panic - not syncing: sysrq triggered crash"


def test_an_end_is_kept_and_listed(paths: Paths) -> None:
    """The JSON of describe-enclaves --all, and the console for its owner only."""
    ended.save(paths, record(debug_mode=True), End(Cause.EXITED, "done", 3), datetime.now(UTC), b"hello")
    (entry,) = ended.load(paths)
    assert (entry["State"], entry["Cause"], entry["ExitStatus"], entry["Flags"]) == ("ENDED", "exited", 3, "DEBUG_MODE")
    assert ended.console_of(paths, entry["EnclaveID"]) == b"hello"
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in paths.ended.iterdir()}
    assert modes == {".json": 0o644, ".console": 0o600}


def test_only_the_newest_are_kept(paths: Paths) -> None:
    """A parent that starts enclaves for years does not fill its runtime directory."""
    for number in range(ended.KEPT + 5):
        ended.save(paths, record(number, debug_mode=True), End(Cause.EXITED, "done", 0), None, b"x")
        os.utime(paths.ended / f"{record(number).enclave_id}.json", ns=(number, number))
    entries = ended.load(paths)
    assert [entry["EnclaveCID"] for entry in entries] == [16 + number for number in range(5, ended.KEPT + 5)]
    assert len(list(paths.ended.glob("*.console"))) == ended.KEPT


def test_a_note_that_cannot_be_written_stops_nothing(paths: Paths) -> None:
    """A full disk, or here a file in the directory's place, loses the note and raises nothing."""
    paths.ended.write_text("in the way")
    ended.save(paths, record(), End(Cause.EXITED, "done", 0), None, None)
    assert ended.load(paths) == []


def test_a_damaged_note_is_passed_over(paths: Paths) -> None:
    """The others are still listed."""
    ended.save(paths, record(), End(Cause.EXITED, "done", 0), None, None)
    (paths.ended / "i-broken.json").write_text("{")
    assert len(ended.load(paths)) == 1


def test_who_finds_a_dead_supervisors_directory_notes_its_end(paths: Paths) -> None:
    """A supervisor that was killed writes nothing; the next listing does, once."""
    one = record()
    _, lock = registry.reserve(paths, one.enclave_id, lambda _: one)
    lock.close()
    assert registry.live(paths) == []
    assert [entry["Cause"] for entry in ended.load(paths)] == ["supervisor killed"]
    assert list(paths.enclaves.iterdir()) == []
