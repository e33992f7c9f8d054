"""The stores that a KMS is tested on, and a server for a module's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.kms.authority_harness import make_attester, make_authority
from tests.unit.kms.postgres_harness import Cluster, cluster
from tests.unit.kms.server_harness import RunningKms, config, running

from alcove.attestation.attester import Attester
from alcove.attestation.authority import Authority

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


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Iterator[RunningKms]:
    """A server on each of the stores."""
    directory = tmp_path_factory.mktemp("kms")
    with running(config(directory, store=new_store(directory))) as service:
        yield service


@pytest.fixture
def key(kms: RunningKms) -> str:
    return str(kms.admin.create_key()["KeyMetadata"]["KeyId"])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def attester(authority: Authority) -> Attester:
    return make_attester(authority)


@pytest.fixture(scope="module")
def trusting_kms(
    tmp_path_factory: pytest.TempPathFactory, new_store: NewStore, authority: Authority
) -> Iterator[RunningKms]:
    """A server on each of the stores that trusts the authority's root."""
    directory = tmp_path_factory.mktemp("kms")
    with running(config(directory, [authority.root], store=new_store(directory))) as service:
        yield service
