"""Where the root key lives, how it is protected, and how it changes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pytest
from pkcs11 import Attribute, KeyType
from tests.unit.kms.server_harness import config, running
from tests.unit.pkcs11.softhsm import SoftHsm, make_softhsm

from alcove.errors import AlcoveError, UsageError
from alcove.kms import rootchange, rootfile, rootplace
from alcove.kms.rootfile import Openers
from alcove.kms.rootkey import RootKey
from alcove.kms.rootplace import VARIABLE, RootPlace
from alcove.kms.sqlite_store import SqliteStore, open_store
from alcove.kms.table_root import WRAPPED
from alcove.kms.users import add_user

PASSPHRASE = b"correct horse battery staple"
URI = "pkcs11:token=hsm;object=kms"
CHEAP = {"n": 1 << 10, "r": 8, "p": 1}


@pytest.fixture(autouse=True)
def cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second each is for users, not for tests; the file says what it cost."""
    monkeypatch.setattr(rootfile, "SCRYPT", CHEAP)


def place(directory: Path, passphrase: bytes = PASSPHRASE, environment: Mapping[str, str] | None = None) -> RootPlace:
    """A place with an environment of its own."""
    return RootPlace(directory / "root.key", Openers(lambda: passphrase, {**os.environ, **(environment or {})}))


def protected(root: RootKey) -> str:
    """A file under the passphrase."""
    return rootfile.under_passphrase(root, PASSPHRASE)


def store_at(directory: Path, where: RootPlace, *, exclusive: bool = False) -> contextlib.closing[SqliteStore]:
    """The store in a directory."""
    return contextlib.closing(open_store(f"{directory}/kms.sqlite", where, exclusive=exclusive))


def test_a_passphrase_protects_the_file(tmp_path: Path) -> None:
    """The key is not in the file, in no spelling; the passphrase opens it and another does not."""
    rootchange.make(place(tmp_path), protected)
    root = place(tmp_path).load()
    raw = (tmp_path / "root.key").read_bytes()
    assert root.export() not in raw
    assert root.export().hex().encode() not in raw
    assert (tmp_path / "root.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="does not open"):
        place(tmp_path, b"wrong horse battery staple").load()


def test_every_member_of_the_file_is_bound(tmp_path: Path) -> None:
    """A changed fingerprint, cost, salt or ciphertext does not open."""
    rootchange.make(place(tmp_path), protected)
    file = json.loads((tmp_path / "root.key").read_text())
    for name, value in (
        ("fingerprint", "0" * 16),
        ("scrypt", file["scrypt"] | {"p": 2}),
        ("scrypt", file["scrypt"] | {"salt": "AAAA"}),
        ("sealed", "A" * 80),
    ):
        (tmp_path / "root.key").write_text(json.dumps(file | {name: value}))
        with pytest.raises(UsageError, match="does not open"):
            place(tmp_path).load()


@pytest.mark.parametrize(
    "change",
    [
        {"scrypt": {"n": 1 << 40, "r": 8, "p": 1, "salt": "AAAA"}},
        {"scrypt": {"n": True, "r": 8, "p": 1, "salt": "AAAA"}},
        {"scrypt": {"n": 3, "r": 8, "p": 1, "salt": "AAAA"}},
        {"scrypt": {}},
        {"kind": "other"},
        {"kind": "pkcs11"},
        {"format": "alcove-kms-root-key-2"},
        {"sealed": "not base64!"},
        {"sealed": 7},
    ],
)
def test_files_that_are_no_root_keys(tmp_path: Path, change: dict[str, object]) -> None:
    """A cost that would eat the machine, unknown kinds and missing members are refused in one line."""
    rootchange.make(place(tmp_path), protected)
    file = json.loads((tmp_path / "root.key").read_text())
    (tmp_path / "root.key").write_text(json.dumps(file | change))
    with pytest.raises(UsageError, match="is not a root key"):
        place(tmp_path).load()


@pytest.mark.parametrize("passphrase", [b"too short", b"x" * 1025])
def test_passphrases_have_bounds(passphrase: bytes) -> None:
    """Twelve bytes at least."""
    with pytest.raises(UsageError, match="12 to 1024"):
        rootfile.under_passphrase(RootKey.generate(), passphrase)


def test_a_container_has_it_in_its_environment(tmp_path: Path) -> None:
    """The variable is enough for a first start and every later one, and no file is made."""
    key = RootKey.generate()
    there = place(tmp_path, environment={VARIABLE: key.export().hex()})
    for _ in range(2):
        with store_at(tmp_path, there) as store:
            assert store.fingerprint == key.fingerprint
    assert not (tmp_path / "root.key").exists()
    with pytest.raises(UsageError, match="cannot change"):
        rootchange.protect(there, rootfile.plain)
    (tmp_path / "root.key").write_text("x")
    with pytest.raises(UsageError, match="two root keys"):
        there.load()


def test_a_wrong_variable_opens_nothing(tmp_path: Path) -> None:
    """Another key, or text that is none, refuses; nothing is made instead."""
    with store_at(tmp_path, place(tmp_path)):
        pass
    (tmp_path / "root.key").rename(tmp_path / "kept")
    with pytest.raises(UsageError, match=f"{VARIABLE} is not the root key"):
        open_store(f"{tmp_path}/kms.sqlite", place(tmp_path, environment={VARIABLE: "ab" * 32}))
    with pytest.raises(UsageError, match=f"{VARIABLE} is not a root key"):
        open_store(f"{tmp_path}/kms.sqlite", place(tmp_path, environment={VARIABLE: "secret"}))
    assert not (tmp_path / "root.key").exists()


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    found = make_softhsm(tmp_path / "hsm", monkeypatch)
    for label in ("kms", "other"):
        with found.session() as session:
            attributes = {Attribute.ENCRYPT: True, Attribute.DECRYPT: True}
            session.generate_key(KeyType.AES, 256, store=True, label=label, template=attributes)
        found.done()
    return found


def test_a_token_protects_the_file(tmp_path: Path, hsm: SoftHsm) -> None:
    """A store opens with the token and its PIN, and with nothing less."""
    there = place(tmp_path, environment=hsm.environment)
    made = rootchange.make(there, lambda root: rootfile.under_token(root, URI, hsm.environment))
    assert (there.kind, there.uri) == ("pkcs11", URI)
    with store_at(tmp_path, there) as store:
        assert store.fingerprint == made
    with pytest.raises(UsageError, match="needs a PIN"):
        place(tmp_path, environment={"ALCOVE_PKCS11_MODULE": hsm.module}).load()
    hsm.remove(label="kms")
    with pytest.raises(UsageError, match="no AES key"):
        there.load()


def test_another_key_of_the_token_does_not_open_it(tmp_path: Path, hsm: SoftHsm) -> None:
    """A file that names another key, and a key made anew under the old name, are told from a failing token."""
    there = place(tmp_path, environment=hsm.environment)
    rootchange.make(there, lambda root: rootfile.under_token(root, URI, hsm.environment))
    text = (tmp_path / "root.key").read_text()
    (tmp_path / "root.key").write_text(text.replace("object=kms", "object=other"))
    with pytest.raises(UsageError, match="does not open the root key"):
        there.load()


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("pkcs11:token=hsm;object=none", "no AES key"),
        ("pkcs11:token=hsm", "several AES keys"),
        ("pkcs11:token=hsm;object=kms;type=private", "type private"),
        ("pkcs11:token=none;object=kms", "token"),
        ("file:/etc", "pkcs11:"),
    ],
)
def test_keys_that_do_not_fit(tmp_path: Path, hsm: SoftHsm, uri: str, why: str) -> None:
    """Nothing is written when the token's key is not there, not alone or not AES."""
    with pytest.raises(AlcoveError, match=why):
        rootchange.make(place(tmp_path), lambda root: rootfile.under_token(root, uri, hsm.environment))
    assert not (tmp_path / "root.key").exists()


def test_a_root_key_moves_between_places(tmp_path: Path, hsm: SoftHsm) -> None:
    """Plain, passphrase, token and back: the same key each time, and the store opens at every stop."""
    there = place(tmp_path, environment=hsm.environment)
    with store_at(tmp_path, there) as store:
        first = store.fingerprint
    stops = (protected, lambda root: rootfile.under_token(root, URI, hsm.environment), rootfile.plain)
    for protection, kind in zip(stops, ("passphrase", "pkcs11", "plain"), strict=True):
        assert rootchange.protect(there, protection) == first
        assert there.kind == kind
        with store_at(tmp_path, there) as store:
            assert store.fingerprint == first
    assert sorted(path.name for path in tmp_path.iterdir() if "root" in path.name) == ["root.key"]


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    """A store that has seen a service: keys, materials, users, secrets."""
    with running(config(tmp_path)) as service:
        key = service.admin.create_key()["KeyMetadata"]["KeyId"]
        sealed = service.admin.encrypt(KeyId=key, Plaintext=b"kept")["CiphertextBlob"]
        service.admin.create_key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")
        service.admin.create_key(Origin="EXTERNAL")
    (tmp_path / "sealed").write_bytes(sealed)
    return tmp_path


def test_rotation_wraps_everything_anew(busy: Path) -> None:
    """Under another root key the same ciphertext opens; nothing in the file is wrapped under the former one."""
    settings = config(busy)
    there = RootPlace.of(settings.root_key)  # type: ignore[arg-type]
    former = there.load()
    with contextlib.closing(open_store(settings.store, there, exclusive=True)) as store:
        fingerprint, kept = rootchange.rotate(store, there, None)
    assert fingerprint != former.fingerprint
    assert RootPlace(kept, there.openers).load().export() == former.export()
    with running(settings) as service:
        opened = service.admin.decrypt(CiphertextBlob=(busy / "sealed").read_bytes())
        assert opened["Plaintext"] == b"kept"
    with contextlib.closing(sqlite3.connect(busy / "kms.sqlite")) as database:
        count = 0
        for table, (columns, form) in WRAPPED.items():
            for *names, wrapped in database.execute(f"SELECT {columns}, wrapped FROM {table}"):  # noqa: S608
                count += wrapped is not None
                with pytest.raises(ValueError, match="not wrapped"):
                    former.unwrap(wrapped or b"", form.format(*names))
        assert count >= 5


def test_rotation_knows_every_wrapped_column(busy: Path) -> None:
    """A table with a secret that rotation did not know would be lost with the former root key."""
    with contextlib.closing(sqlite3.connect(busy / "kms.sqlite")) as database:
        sources = [row[0] for row in database.execute("SELECT sql FROM sqlite_schema WHERE type='table'")]
    blobs = {source.split()[2] for source in sources if re.search(r"\bBLOB\b", source)}
    assert blobs == {*WRAPPED, "meta"}


def test_rotation_waits_for_nobody_to_use_the_store(busy: Path) -> None:
    """While a service runs it is refused, and the service goes on."""
    settings = config(busy)
    with running(settings) as service:
        with pytest.raises(UsageError, match="is in use"):
            open_store(settings.store, settings.root_key, exclusive=True)
        assert service.admin.list_keys()["Keys"]


@pytest.mark.parametrize("count", range(6))
def test_files_change_places_at_once(busy: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Killed before or after any of its three renames, a root key is where it is looked for, and fits the store."""
    settings = config(busy)
    there = RootPlace.of(settings.root_key)  # type: ignore[arg-type]
    left, real = iter(range(count)), rootplace._rename

    def one_more() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    def rename(old: Path, new: Path) -> None:
        one_more()
        real(old, new)
        one_more()

    monkeypatch.setattr(rootplace, "_rename", rename)
    with (
        contextlib.closing(open_store(settings.store, there, exclusive=True)) as store,
        pytest.raises(KeyboardInterrupt),
    ):
        rootchange.rotate(store, there, None)
    monkeypatch.undo()
    with contextlib.closing(open_store(settings.store, there)) as store:
        assert there.load().fingerprint == store.fingerprint


@pytest.mark.parametrize("committed", [True, False])
def test_a_rotation_that_is_cut_short_loses_nothing(
    busy: Path, monkeypatch: pytest.MonkeyPatch, *, committed: bool
) -> None:
    """Killed before its commit, the former root key opens the store; after it, the new one, which takes its place."""
    settings = config(busy)
    there = RootPlace.of(settings.root_key)  # type: ignore[arg-type]
    former = there.load().fingerprint

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with contextlib.closing(open_store(settings.store, there, exclusive=True)) as store:
        if committed:
            monkeypatch.setattr(RootPlace, "promote", killed)
        else:
            monkeypatch.setattr(SqliteStore, "_save_meta", killed)
        with pytest.raises(KeyboardInterrupt):
            rootchange.rotate(store, there, protected)
    monkeypatch.undo()
    monkeypatch.setattr(rootfile, "SCRYPT", CHEAP)
    again = RootPlace.of(there.path, lambda: PASSPHRASE)
    with contextlib.closing(open_store(settings.store, again)) as store:
        assert (store.fingerprint == former) is not committed
        add_user(store, "later")
    assert again.load().fingerprint == store.fingerprint
    assert again.staged.path.exists() is not committed
    with contextlib.closing(open_store(settings.store, again, exclusive=True)) as store:
        rootchange.rotate(store, again, None)
        assert "later" in {user.name for user in store.users()}
