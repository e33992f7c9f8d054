"""The stores that a KMS is tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.kms.postgres_harness import Cluster, cluster

NewStore = Callable[[Path], str]
"""A directory → the URL of a new store."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    with cluster() as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def new_store(request: pytest.FixtureRequest) -> NewStore:
    if request.param == "sqlite":
        return lambda directory: f"sqlite:///{directory}/kms.sqlite"
    server: Cluster = request.getfixturevalue("postgres")
    return lambda _directory: server.new_database()
