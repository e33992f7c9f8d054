"""What a store remembers of its audit logs (kms.md §24)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from tests.unit.kms.conftest import NewStore
from tests.unit.kms.server_harness import config, running

from alcove.kms.audit import inspect_log
from alcove.kms.heads import known_logs, log_name, note_head, noted_head
from alcove.kms.stores import open_store


def test_a_head_is_known_again(new_store: NewStore, tmp_path: Path) -> None:
    """The last one that was noted, of each log by itself, by whoever opens the store."""
    url, root, one, other = new_store(tmp_path), tmp_path / "root.key", "here:/a.jsonl", "here:/b.jsonl"
    with contextlib.closing(open_store(url, root)) as store:
        assert noted_head(store, one) is None
        note_head(store, one, f"1:{'a' * 64}")
        note_head(store, one, f"2:{'b' * 64}")
    with contextlib.closing(open_store(url, root)) as store:
        assert noted_head(store, one) == (2, "b" * 64)
        assert noted_head(store, other) is None


@pytest.mark.parametrize("forged", ["", "1:aa", f"1:{'a' * 64} {'0' * 64}"])
def test_a_head_cannot_be_made_up(new_store: NewStore, tmp_path: Path, forged: str) -> None:
    """Whoever writes into the database has not its secret; nor is the head of one log good for another."""
    with contextlib.closing(open_store(new_store(tmp_path), tmp_path / "root.key")) as store:
        names = {name: name if store.shared else name.removeprefix("here:") for name in ("here:/one", "here:/two")}
        one, two = names
        store.save_note(f"audit {names[one]}", forged)
        with pytest.raises(ValueError, match="was changed"):
            noted_head(store, one)
        note_head(store, two, f"2:{'b' * 64}")
        store.save_note(f"audit {names[one]}", store.note(f"audit {names[two]}") or "")
        with pytest.raises(ValueError, match="was changed"):
            noted_head(store, one)


def test_a_container_is_known_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under another host name, a log beside its SQLite store is still the one that was cut."""
    settings = config(tmp_path)
    with running(settings) as service:
        for number in range(1, 4):
            service.admin.generate_random(NumberOfBytes=number)
    log = settings.audit
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:1]))
    monkeypatch.setattr("socket.gethostname", lambda: "another-container")
    with running(settings):
        pass
    assert json.loads(log.read_bytes().splitlines()[-1])["eventName"] == "AuditLogCut"
    with contextlib.closing(open_store(settings.store, settings.root_key)) as store:
        assert known_logs(store) == [log]


def test_servers_that_share_a_store_have_logs_of_their_own(new_store: NewStore, tmp_path: Path) -> None:
    """Two machines with logs at one path: two heads on PostgreSQL; SQLite's is on one machine, whatever its name."""
    with contextlib.closing(open_store(new_store(tmp_path), tmp_path / "root.key")) as store:
        note_head(store, "one:/log", f"1:{'a' * 64}")
        note_head(store, "two:/log", f"2:{'b' * 64}")
        assert (noted_head(store, "one:/log") == (1, "a" * 64)) is store.shared
        assert noted_head(store, "two:/log") == (2, "b" * 64)


def test_a_server_notes_what_is_on_disk(tmp_path: Path) -> None:
    """At its end the store has the log's own head; a log that lost it says so at the next start, and goes on."""
    settings = config(tmp_path)
    with running(settings) as service:
        for number in range(1, 4):
            service.admin.generate_random(NumberOfBytes=number)
    log = settings.audit
    whole = inspect_log(log.read_bytes().splitlines(keepends=True))
    with contextlib.closing(open_store(settings.store, settings.root_key)) as store:
        assert noted_head(store, log_name(log)) == (whole.records, whole.head)
    with running(settings):
        pass
    assert inspect_log(log.read_bytes().splitlines(keepends=True)).records == whole.records
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:1]))
    with running(settings):
        pass
    last = json.loads(log.read_bytes().splitlines()[-1])
    assert (last["eventName"], last["chain"]["sequence"]) == ("AuditLogCut", 2)
    assert last["serviceEventDetails"]["expected"] == f"{whole.records}:{whole.head}"
