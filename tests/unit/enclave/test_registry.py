from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alcove.enclave import registry
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.errors import MachineError, UsageError
from alcove.types import Cid

RESERVE = """
import sys
from pathlib import Path
from alcove.enclave import registry
from alcove.enclave.record import Record
from alcove.enclave.paths import Paths
paths = Paths(Path(sys.argv[1]), Path(sys.argv[1]), Path(sys.argv[1]))
def decide(others):
    name, cid = registry.free_name("app", others), registry.free_cid(None, others)
    return Record(sys.argv[2], name, cid, (0,), 64, 1, False)
record, lock = registry.reserve(paths, sys.argv[2], decide)
print(record.name, record.cid, flush=True)
sys.stdin.read()
"""


CHURN = (
    RESERVE.partition("record, lock")[0]
    + """
for number in range(40):
    record, lock = registry.reserve(paths, f"{sys.argv[2]}-{number}", decide)
    registry.release(paths, record, lock)
"""
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path, tmp_path, tmp_path)


def start(paths: Paths, enclave_id: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RESERVE, str(paths.run), enclave_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_start_removes_what_killed_starts_left(paths: Paths) -> None:
    """Files of starts, reservations and burials that no process holds go; what a living one holds stays."""
    first, held = registry.stage(paths)
    (first / "kernel").write_bytes(b"kernel")
    dead = [paths.run / "boot-4711", paths.enclaves / ".i-1-enc2", paths.enclaves / ".dead-i-1-enc2-4194305"]
    digging = paths.enclaves / f".dead-i-3-enc4-{os.getpid()}"
    for directory in (*dead, digging):
        directory.mkdir()
        (directory / "file").write_bytes(b"left")
    second, other = registry.stage(paths)
    assert first != second
    assert (first / "kernel").exists()
    assert digging.exists()
    assert not [directory for directory in dead if directory.exists()]
    os.close(held)
    os.close(other)
    third, last = registry.stage(paths)
    os.close(last)
    assert third.exists()
    assert not first.exists()
    assert not second.exists()


def test_parallel_reservations_get_names_and_cids_of_their_own(paths: Paths) -> None:
    """Processes that reserve at the same moment never share a name or a CID."""
    processes = [start(paths, f"i-{number}") for number in range(4)]
    try:
        got = {process.stdout.readline().strip() for process in processes if process.stdout}
        assert {line.split()[1] for line in got} == {"16", "17", "18", "19"}
        assert {line.split()[0] for line in got} == {"app", "app_1", "app_2", "app_3"}
        assert len(registry.live(paths)) == 4
    finally:
        for process in processes:
            process.communicate("")
    assert registry.live(paths) == []


def test_a_cid_leads_to_its_enclave(paths: Paths) -> None:
    """<runtime>/cid/<CID> is the enclave's directory; a later reservation removes what leads nowhere."""
    first = start(paths, "i-1")
    assert first.stdout
    first.stdout.readline()
    assert (paths.cids / "16" / "record.json").exists()
    (paths.cids / "99").symlink_to("../enclaves/i-99")
    second = start(paths, "i-2")
    assert second.stdout
    second.stdout.readline()
    assert sorted(link.name for link in paths.cids.iterdir()) == ["16", "17"]
    assert (paths.cids / "17").resolve().name == "i-2"
    first.communicate("")
    second.communicate("")


def test_an_enclave_is_gone_when_its_process_is_killed(paths: Paths) -> None:
    """SIGKILL frees the reservation at once; the next look removes what it left."""
    process = start(paths, "i-1")
    assert process.stdout
    process.stdout.readline()
    assert [record.enclave_id for record in registry.live(paths)] == ["i-1"]
    process.kill()
    process.communicate()
    assert registry.live(paths) == []
    assert list(paths.enclaves.iterdir()) == []


def test_an_enclave_that_vanishes_meanwhile_hides_no_other(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that goes between the listing and the look at it is passed over: the others count."""
    process = start(paths, "i-1")
    assert process.stdout
    process.stdout.readline()
    ending, lstat = paths.enclaves / "i-0", Path.lstat
    ending.mkdir()

    def vanish(path: Path) -> os.stat_result:
        if path == ending:
            ending.rmdir()
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", vanish)
    assert [record.enclave_id for record in registry.live(paths)] == ["i-1"]
    assert not ending.exists()
    process.communicate("")


def test_who_stays_is_listed_at_every_moment(paths: Paths) -> None:
    """While others start and end as fast as they can, no look misses the one that is there."""
    process = start(paths, "i-stays")
    assert process.stdout
    name, cid = process.stdout.readline().split()
    churners = [subprocess.Popen([sys.executable, "-c", CHURN, str(paths.run), f"i-{n}"]) for n in range(2)]
    while any(churner.poll() is None for churner in churners):
        found = {record.enclave_id: record for record in registry.live(paths)}
        assert (found["i-stays"].name, str(found["i-stays"].cid)) == (name, cid)
        others = [record for key, record in found.items() if key != "i-stays"]
        assert not {name} & {record.name for record in others}
        assert not {cid} & {str(record.cid) for record in others}
    assert [churner.returncode for churner in churners] == [0, 0]
    assert [record.enclave_id for record in registry.live(paths)] == ["i-stays"]
    assert (paths.cids / cid).exists()
    process.communicate("")


def test_a_refused_reservation_leaves_nothing(paths: Paths) -> None:
    """When the decision fails, no directory and no lock remain."""

    def decide(_: list[Record]) -> Record:
        raise UsageError("no")

    with pytest.raises(UsageError):
        registry.reserve(paths, "i-1", decide)
    assert list(paths.enclaves.iterdir()) == []


def test_unknown_enclaves_have_their_codes(paths: Paths) -> None:
    """cli.md §2: E11 by id, E58 by name."""
    for arguments, code in (({"enclave_id": "i-9"}, "E11"), ({"name": "x"}, "E58")):
        with pytest.raises(UsageError) as caught:
            registry.find(paths, **arguments)
        assert caught.value.code == code


def test_a_cid_in_use_is_refused() -> None:
    """cli.md §3.2: the driver refuses a CID that is taken."""
    other = Record("i-1", "a", 20, (0,), 64, 1, debug_mode=False)
    assert registry.free_cid(Cid(21), [other]) == 21
    with pytest.raises(UsageError, match="in use"):
        registry.free_cid(Cid(20), [other])


def test_a_runtime_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    """Sockets in somebody else's directory would be somebody else's: E07."""
    open_to_all = tmp_path / "run"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(MachineError) as caught:
        registry.prepare(Paths(tmp_path, open_to_all, tmp_path))
    assert caught.value.code == "E07"


def test_directories_follow_the_environment() -> None:
    """Design: ALCOVE_* first, then root's or the user's own places."""
    assert Paths.from_environment({}, uid=0).run == Path("/run/alcove")
    assert Paths.from_environment({"ALCOVE_RUN": "/x"}, uid=0).run == Path("/x")
    user = Paths.from_environment({"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7"}, uid=7)
    assert (user.state, user.run) == (Path("/home/u/.local/share/alcove"), Path("/run/user/7/alcove"))
    assert Paths.from_environment({"HOME": "/home/u"}, uid=7).run == Path("/tmp/alcove-7")
    assert Paths.from_environment({"ALCOVE_RUN": "x"}, uid=0).run == Path.cwd() / "x"


def test_somebody_elses_runtime_directory_is_refused() -> None:
    """In /tmp everybody can make a directory that looks like one's own; a program would talk to its maker's sockets."""
    stranger = 3_000_000_000 + os.getpid()
    waiting = Path(f"/tmp/alcove-{stranger}")
    waiting.symlink_to("/nonexistent")
    try:
        with pytest.raises(MachineError, match="somebody else's"):
            Paths.from_environment({"HOME": "/home/u"}, uid=stranger)
        assert Paths.from_environment({"ALCOVE_RUN": "/x"}, uid=stranger).run == Path("/x")
    finally:
        waiting.unlink()
