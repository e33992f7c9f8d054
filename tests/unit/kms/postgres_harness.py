"""A PostgreSQL of the tests' own: Debian's, in a temporary directory, as an unprivileged user, on a socket there."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@dataclass(slots=True)
class Cluster:
    """One server; `start` and `kill` can be called again and again."""

    directory: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Starts it and waits until it takes connections."""
        settings = {"listen_addresses": "", "unix_socket_directories": self.directory, "max_connections": 60}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        argv = [BINARIES[-1] / "postgres", "-D", self.directory / "data", "-F", *options]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=self.directory, **_unprivileged())
        until = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise AssertionError((self.directory / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def kill(self, number: signal.Signals) -> None:
        """Ends it, and waits for its end."""
        if self.process:
            self.process.send_signal(number)
            self.process.wait(timeout=60)
            self.process = None

    def url(self, database: str) -> str:
        """What libpq connects to."""
        return f"postgresql://tests@/{database}?host={self.directory}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"store{secrets.token_hex(6)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        return self.url(name)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A server that runs until the block ends."""
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed: scripts/setup --tests")
    directory = Path(tempfile.mkdtemp(prefix="alcove-pg-"))
    try:
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(directory, account.pw_uid, account.pw_gid)
        argv = [BINARIES[-1] / "initdb", "-D", directory / "data", "-U", "tests", "-A", "trust", "-N", "-E", "UTF8"]
        subprocess.run(argv, check=True, capture_output=True, cwd=directory, **_unprivileged())
        server = Cluster(directory)
        server.start()
        try:
            yield server
        finally:
            server.kill(signal.SIGINT)  # "fast": connections are ended
    finally:
        shutil.rmtree(directory)


def files_of(url: str) -> list[Path]:
    """What is on disk of a database of the tests' own, and the server's log of writes."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        found = connection.execute("SELECT oid, current_setting('data_directory') FROM pg_database "
                                   "WHERE datname=current_database()").fetchone()  # fmt: skip
        assert found is not None
    data = Path(found[1])
    return [
        file for place in (data / "base" / str(found[0]), data / "pg_wal") for file in place.iterdir() if file.is_file()
    ]


def _unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
