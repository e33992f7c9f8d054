"""Backups of a store that is served, and stores made from them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.kms.server_harness import RunningKms, config, running

from alcove.errors import InputError, MachineError, UsageError
from alcove.kms.backup import back_up, inspect, restore
from alcove.kms.rootplace import RootPlace

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    with running(config(tmp_path_factory.mktemp("backup"))) as service:
        yield service


def database_of(kms: RunningKms) -> Path:
    """The store's file."""
    return Path(kms.config.store.removeprefix("sqlite:///"))


def test_a_backup_of_a_running_service_comes_back(kms: RunningKms, tmp_path: Path) -> None:
    """A store restored beside the same root key decrypts what the first one encrypted."""
    key = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"kept")["CiphertextBlob"]
    made = back_up(database_of(kms), tmp_path / "backup", NOW)
    root = RootPlace.of(kms.config.root_key).load()  # type: ignore[arg-type]
    assert (made.fingerprint, made.taken) == (root.fingerprint, "2026-01-02T03:04:05Z")
    assert made.keys >= 1
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    other = tmp_path / "other"
    assert restore(tmp_path / "backup", other / "kms.sqlite") == made
    (other / "secret").mkdir()
    (other / "secret" / "root.key").write_bytes(Path(str(kms.config.root_key)).read_bytes())
    (other / "secret" / "root.key").chmod(0o600)
    with running(config(other)) as service:
        assert service.admin.decrypt(CiphertextBlob=sealed)["Plaintext"] == b"kept"


def test_a_backup_is_of_one_moment(kms: RunningKms, tmp_path: Path) -> None:
    """Taken while keys are being made, it has a whole number of them: each key has its material."""
    stop = threading.Event()

    def write() -> None:
        client = kms.admin
        while not stop.is_set():
            client.create_key()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = [back_up(database_of(kms), tmp_path / f"backup{n}", NOW).keys for n in range(5)]
    finally:
        stop.set()
        writer.join()
    assert counts == sorted(counts)
    for number, count in enumerate(counts):
        database = sqlite3.connect(tmp_path / f"backup{number}")
        assert database.execute("SELECT count(*) FROM materials WHERE wrapped IS NOT NULL").fetchone()[0] == count
        database.close()


def test_a_backup_has_no_secret_in_clear(kms: RunningKms, tmp_path: Path) -> None:
    """Neither the root key nor an access key's secret is in it."""
    back_up(database_of(kms), tmp_path / "backup", NOW)
    raw = (tmp_path / "backup").read_bytes()
    root = RootPlace.of(kms.config.root_key).load()  # type: ignore[arg-type]
    secrets = [kms.admin_user.secret_access_key.encode(), root.export(), root.export().hex().encode()]
    assert not [secret for secret in secrets if secret in raw]
    assert kms.admin_user.access_key_id.encode() in raw


def test_nothing_is_overwritten(kms: RunningKms, tmp_path: Path) -> None:
    """A second backup of the same name, a store that is there, and a log beside a store that is not."""
    back_up(database_of(kms), tmp_path / "backup", NOW)
    with pytest.raises(UsageError, match="exists already"):
        back_up(database_of(kms), tmp_path / "backup", NOW)
    with pytest.raises(UsageError, match="exists already"):
        restore(tmp_path / "backup", database_of(kms))
    (tmp_path / "gone.sqlite-wal").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"gone\.sqlite-wal"):
        restore(tmp_path / "backup", tmp_path / "gone.sqlite")
    assert {path.name for path in tmp_path.iterdir()} == {"backup", "gone.sqlite-wal"}


def test_files_that_are_no_backups(kms: RunningKms, tmp_path: Path) -> None:
    """Nothing, text, another database, the store itself, and half a backup."""
    with pytest.raises(UsageError, match="no file"):
        inspect(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    sqlite3.connect(tmp_path / "empty").close()
    back_up(database_of(kms), tmp_path / "backup", NOW)
    whole = (tmp_path / "backup").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    for path in (tmp_path / "text", tmp_path / "empty", database_of(kms), tmp_path / "half"):
        with pytest.raises(InputError, match=r"is not a backup|is damaged"):
            restore(path, tmp_path / "new.sqlite")
    assert not (tmp_path / "new.sqlite").exists()


def test_a_backup_that_cannot_be_written_leaves_nothing(kms: RunningKms, tmp_path: Path) -> None:
    """A directory in which nothing can be made, and one that is a file: one line."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="cannot copy"):
        back_up(database_of(kms), Path("/proc/backup"), NOW)
    with pytest.raises(UsageError, match="there is no directory"):
        back_up(database_of(kms), tmp_path / "file" / "backup", NOW)
    with pytest.raises(UsageError, match="not a store"):
        back_up(tmp_path / "file", tmp_path / "backup", NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
