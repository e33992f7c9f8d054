"""What a store remembers of its audit logs (kms.md §24)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from tests.unit.kms.conftest import NewStore
from tests.unit.kms.server_harness import config, running

from alcove.kms.audit import inspect_log
from alcove.kms.heads import log_name, note_head, noted_head
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
        store.save_note("audit one", forged)
        with pytest.raises(ValueError, match="was changed"):
            noted_head(store, "one")
        note_head(store, "two", f"2:{'b' * 64}")
        store.save_note("audit one", store.note("audit two") or "")
        with pytest.raises(ValueError, match="was changed"):
            noted_head(store, "one")


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
