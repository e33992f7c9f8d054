"""Stores that many servers share: what one writes the others see, whichever database it is."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from tests.unit.kms.conftest import NewStore
from tests.unit.kms.postgres_harness import Cluster, cluster
from tests.unit.kms.server_harness import ROOT_ARN, client, config, refused, running

from alcove.errors import MachineError, UsageError
from alcove.kms.keys import Key, Material
from alcove.kms.material import make_pair, public_bytes, public_half
from alcove.kms.postgres_store import BOUND, PostgresStore
from alcove.kms.rootplace import RootPlace
from alcove.kms.stores import Store, open_store
from alcove.kms.users import add_user, list_users, remove_user, rotate_user

REGION = "us-east-1"


def key(name: str, **change: object) -> Key:
    values = {"key_id": name, "created": 1.5, "policy": "{}", "material_id": "", "region": REGION}
    return Key(**values | change)  # type: ignore[arg-type]


@pytest.fixture
def two(tmp_path: Path, new_store: NewStore) -> Iterator[tuple[Store, Store]]:
    """Two servers' views of one store."""
    url = new_store(tmp_path)
    with (
        contextlib.closing(open_store(url, tmp_path / "root.key")) as one,
        contextlib.closing(open_store(url, tmp_path / "root.key")) as other,
    ):
        yield one, other


def eventually(found: Callable[[], bool]) -> None:
    """Waits as long as a store may remember what is old; what comes later than that, and some more, is too late."""
    until = time.monotonic() + BOUND + 10
    while not found():
        assert time.monotonic() < until, "it is remembered for longer than the bound"
        time.sleep(0.01)


def test_what_one_writes_the_other_sees(two: tuple[Store, Store]) -> None:
    """A new key at once; a change, and a removal, within the bound."""
    one, other = two
    one.create_key(key("a", tags={"team": "blue"}))
    assert other.key(REGION, "a") == key("a", tags={"team": "blue"})
    changed = key("a", policy='{"changed": true}', description="ü", deletion_date=2.25)
    one.save_key(changed)
    assert one.key(REGION, "a") == changed
    eventually(lambda: other.key(REGION, "a") == changed)
    assert one.purge(3.0) == [("us-east-1", "a")]
    eventually(lambda: other.key(REGION, "a") is None)


def test_a_parsed_key_is_remembered_as_long_as_its_material(two: tuple[Store, Store]) -> None:
    """The same object until something changes; gone for both views, and from their memory, when it is erased."""
    one, other = two
    one.create_key(key("a", spec="ECC_NIST_P256"))
    pair = make_pair("ECC_NIST_P256")
    one.save_material(key("a"), Material("11" * 32, 0), pair)
    parsed = [store.private_key(key("a"), "11" * 32) for store in two]
    assert [public_bytes(found) for found in parsed] == [public_half(pair)] * 2
    assert one.private_key(key("a"), "11" * 32) is parsed[0]
    held = [sys.getrefcount(found) for found in parsed]
    one.save_material(key("a"), Material("11" * 32, 0, present=False), None)
    eventually(lambda: one.private_key(key("a"), "11" * 32) is None)
    eventually(lambda: other.private_key(key("a"), "11" * 32) is None)
    assert [sys.getrefcount(found) for found in parsed] == [count - 1 for count in held]
    with one.transaction():
        assert one.private_key(key("b"), "11" * 32) is None


def test_material_is_kept_and_erased(two: tuple[Store, Store]) -> None:
    """Wrapped on its way in, unwrapped on its way out; gone for both when it is erased."""
    one, other = two
    one.create_key(key("a"))
    one.save_material(key("a"), Material("11" * 32, 0), b"secret")
    assert other.material(key("a"), "11" * 32) == b"secret"
    with one.transaction():
        one.save_material(key("a"), Material("11" * 32, 0, present=False), None)
    eventually(lambda: other.material(key("a"), "11" * 32) is None)
    assert other.materials(key("a")) == [Material("11" * 32, 0, present=False)]


def test_a_transaction_that_fails_changes_nothing(two: tuple[Store, Store]) -> None:
    """Neither for others nor for whoever made it; what it had read in between is not remembered."""
    one, other = two
    one.create_key(key("a"))

    def fail() -> None:
        with one.transaction():
            one.save_key(key("a", description="new"))
            with one.transaction():
                one.create_key(key("b"))
            assert one.key(REGION, "a") == key("a", description="new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    for store in two:
        assert store.key(REGION, "a") == key("a")
        assert store.key(REGION, "b") is None
    assert other.keys(REGION, "", 10) == [key("a")]


def test_pages_are_in_the_order_of_bytes(two: tuple[Store, Store]) -> None:
    """Whatever the database's own language sorts like."""
    one, other = two
    names = ["A-b", "Ab", "a", "a-c", "ab", "b"]
    for name in reversed(names):
        one.create_key(key(name))
    assert [found.key_id for found in other.keys(REGION, "", 3)] == names[:3]
    assert [found.key_id for found in other.keys(REGION, names[2], 10)] == names[3:]


def test_users_are_shared(two: tuple[Store, Store]) -> None:
    """Names are unique among all servers, access keys come in order, and a removed user is nobody within the bound."""
    one, other = two
    made = add_user(one, "app")
    with pytest.raises(UsageError, match="already"):
        add_user(other, "app")
    newer = rotate_user(other, "app", keep_old=True)
    assert list_users(one)[0]["AccessKeyIds"] == [made.access_key_id, newer.access_key_id]
    assert other.access_key(made.access_key_id) is not None
    remove_user(one, "app")
    eventually(lambda: other.access_key(made.access_key_id) is None)


def test_writers_wait_for_each_other(two: tuple[Store, Store]) -> None:
    """Two hundred additions by two servers at once: none is lost."""
    one, other = two
    one.create_key(key("a", description="0"))

    def add(store: Store) -> None:
        for _ in range(100):
            with store.transaction():
                found = store.key(REGION, "a")
                assert found is not None
                store.save_key(key("a", description=str(int(found.description) + 1)))

    adders = [threading.Thread(target=add, args=(store,)) for store in two]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join()
    eventually(lambda: other.key(REGION, "a") == key("a", description="200"))


def test_first_starts_at_the_same_moment(tmp_path: Path, new_store: NewStore) -> None:
    """Eight of them make one store with one root key."""
    url, found, failed = new_store(tmp_path), list[str](), list[BaseException]()
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        try:
            with contextlib.closing(open_store(url, tmp_path / "root.key")) as store:
                found.append(store.fingerprint)
        except BaseException as error:  # noqa: BLE001 - it is looked at in the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(found) == 8
    assert len(set(found)) == 1


def test_its_root_key_is_asked_for(tmp_path: Path, new_store: NewStore) -> None:
    """A store opens under its own root key alone, and changes it when nobody else has the store open."""
    url = new_store(tmp_path)
    with contextlib.closing(open_store(url, tmp_path / "root.key")):
        with pytest.raises(UsageError, match="in use"):
            open_store(url, tmp_path / "root.key", exclusive=True)
        with pytest.raises(UsageError, match="missing"):
            open_store(url, tmp_path / "another.key")
        assert not (tmp_path / "another.key").exists()  # none is made beside data
        RootPlace.of(tmp_path / "wrong.key").create()
        with pytest.raises(UsageError, match="not the root key of this store"):
            open_store(url, tmp_path / "wrong.key")
    with pytest.raises(UsageError, match="belongs to account"):
        open_store(url, tmp_path / "root.key", account="999999999999")
    with contextlib.closing(open_store(url, tmp_path / "root.key", exclusive=True)), pytest.raises(UsageError):
        open_store(url, tmp_path / "root.key")


def test_two_servers_share_keys(tmp_path: Path, new_store: NewStore) -> None:
    """What one encrypts the other opens at once; a policy that one changes holds at the other within the bound."""
    url = new_store(tmp_path)
    with (
        running(config(tmp_path, store=url)) as one,
        running(config(tmp_path, store=url, audit=tmp_path / "other.jsonl")) as other,
    ):
        there = client(other.url, one.admin_user)
        made = one.admin.create_key()["KeyMetadata"]["KeyId"]
        sealed = one.admin.encrypt(KeyId=made, Plaintext=b"secret")["CiphertextBlob"]
        assert there.decrypt(CiphertextBlob=sealed)["Plaintext"] == b"secret"
        statements = [
            {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": "kms:*", "Resource": "*"},
            {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"},
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        one.admin.put_key_policy(KeyId=made, Policy=policy)
        time.sleep(BOUND)  # the promise itself, not a wait for something
        with refused("AccessDeniedException"):
            there.decrypt(CiphertextBlob=sealed)


def test_a_bad_url_is_one_line(tmp_path: Path, postgres: Cluster) -> None:
    """Passwords in arguments are refused; what cannot be reached is named; nothing of it is a traceback."""
    for url, kind, words in (
        ("postgresql://tests:secret@localhost/x", UsageError, "password"),
        ("postgresql://host/x?nonsense=1", UsageError, "cannot be read"),
        (postgres.url("absent"), MachineError, "does not exist"),
    ):
        with pytest.raises(kind, match=words) as caught:
            open_store(url, tmp_path / "root.key")
        assert "\n" not in caught.value.message
        assert "secret" not in caught.value.message


@pytest.mark.slow
def test_a_connection_that_broke_is_made_again(tmp_path: Path, postgres: Cluster) -> None:
    """When the database ends a session, or starts anew, the next call is served."""
    url = postgres.new_database()
    with contextlib.closing(open_store(url, tmp_path / "root.key")) as store:
        assert isinstance(store, PostgresStore)
        store.create_key(key("a"))
        for write in (False, True):
            with psycopg.connect(url, autocommit=True) as boss:
                boss.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype='advisory'")
            if write:
                store.save_key(key("a", description="new"))
            assert store.keys(REGION, "", 1)[0].description == ("new" if write else "")


@pytest.mark.slow
def test_nothing_is_answered_without_the_database(tmp_path: Path) -> None:
    """While it is away calls fail, as faults of the service; once it is back they are served, by the same process."""
    with cluster() as server, running(config(tmp_path, store=server.new_database())) as service:
        made = service.admin.create_key()["KeyMetadata"]["KeyId"]
        server.kill(signal.SIGINT)
        time.sleep(BOUND)  # what is remembered is good for that long
        with pytest.raises(Exception, match="KMSInternalException"):
            service.admin.encrypt(KeyId=made, Plaintext=b"x")
        server.start()
        assert service.admin.encrypt(KeyId=made, Plaintext=b"x")["KeyId"].endswith(made)
