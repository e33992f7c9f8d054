"""A real KMS on loopback in a thread, with boto3 clients for its users."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from alcove.attestation.verify import Root
from alcove.kms.postgres_store import BOUND
from alcove.kms.server import ServeConfig, serve
from alcove.kms.stores import is_postgres, open_store
from alcove.kms.users import NewUser, add_user

ACCOUNT = "111122223333"
ROOT_ARN = f"arn:aws:iam::{ACCOUNT}:root"


@dataclass(frozen=True, slots=True)
class RunningKms:
    """A service that answers, with an administrator and a user without rights of its own."""

    url: str
    config: ServeConfig
    admin_user: NewUser
    app_user: NewUser

    @property
    def admin(self) -> Any:
        """boto3 as the administrator."""
        return client(self.url, self.admin_user)

    @property
    def app(self) -> Any:
        """boto3 as the application's user."""
        return client(self.url, self.app_user)

    def settle(self) -> None:
        """Waits for as long as the server may remember what another process has changed: on PostgreSQL, a moment."""
        if is_postgres(self.config.store):
            time.sleep(BOUND)

    def records(self) -> list[dict[str, Any]]:
        """The audit log."""
        return [json.loads(line) for line in self.config.audit.read_bytes().splitlines()]


def client(url: str, user: NewUser, **options: Any) -> Any:
    """A boto3 client without retries."""
    return boto3.client(
        "kms",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=user.access_key_id,
        aws_secret_access_key=options.pop("secret", user.secret_access_key),
        config=Config(retries={"max_attempts": 0}, connect_timeout=60, read_timeout=60),
        **options,
    )


def config(directory: Path, roots: Sequence[Root] = (), **change: Any) -> ServeConfig:
    """A configuration with everything in one directory."""
    return ServeConfig(
        **{
            "store": f"sqlite:///{directory}/kms.sqlite",
            "root_key": directory / "secret" / "root.key",
            "audit": directory / "audit.jsonl",
            "roots": roots,
            "port": 0,
        }
        | change
    )


@contextlib.contextmanager
def running(settings: ServeConfig) -> Iterator[RunningKms]:
    """Serves until the block ends."""
    with contextlib.closing(open_store(settings.store, settings.root_key)) as store:
        names = {user.name for user in store.users()}
        admin = add_user(store, f"admin{len(names)}", admin=True)
        app = add_user(store, f"app{len(names)}")
    outcome: queue.Queue[str | BaseException] = queue.Queue()
    stop = threading.Event()

    def run() -> None:
        try:
            serve(settings, ready=outcome.put, stop=stop)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the test's thread
            outcome.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        first = outcome.get(timeout=120)
        if isinstance(first, BaseException):
            raise first
        yield RunningKms(first, settings, admin, app)
    finally:
        stop.set()
        thread.join(timeout=120)


@contextlib.contextmanager
def refused(kind: str) -> Iterator[dict[str, str]]:
    """The block is refused with this class; `message` in what it yields is then the text."""
    found: dict[str, str] = {}
    with pytest.raises(ClientError) as caught:
        yield found
    error = caught.value.response["Error"]
    assert error["Code"] == kind, error
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    found["message"] = error.get("Message", "")
