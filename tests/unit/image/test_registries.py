"""Names without a registry in a Dockerfile: Docker Hub's, unless the machine or the user says otherwise."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from alcove.errors import MachineError
from alcove.image.sources.fetch import ContainerSource
from alcove.image.sources.registries import VARIABLE, registries_conf

MIRROR = '[[registry]]\nlocation = "a.example"\ninsecure = true\n'
KEY = "unqualified-search-registries"


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Directories for the machine's and the user's configuration, and for what is made."""
    made = {name: tmp_path / name for name in ("system", "user/containers", "work")}
    for path in made.values():
        (path / "registries.conf.d").mkdir(parents=True)
    return made


def conf(places: dict[str, Path], **environment: str) -> dict[str, object] | None:
    """What the file says; None when there is none."""
    variables = {"XDG_CONFIG_HOME": str(places["user/containers"].parent)} | environment
    path = registries_conf(variables, places["work"], places["system"])
    return None if path is None else tomllib.loads(path.read_text())


@pytest.mark.parametrize("where", ["system", "user/containers"])
def test_docker_hub_is_added_to_what_there_is(places: dict[str, Path], where: str) -> None:
    """The rest of the machine's file, or of the user's, stays."""
    (places[where] / "registries.conf").write_text(MIRROR)
    (places[where] / "registries.conf.d" / "short.conf").write_text('[aliases]\n"a" = "b.example/a"\n')
    assert conf(places) == {KEY: ["docker.io"], **tomllib.loads(MIRROR)}


def test_without_any_configuration_docker_hub_is_all(places: dict[str, Path]) -> None:
    """Some machines have none."""
    assert conf(places) == {KEY: ["docker.io"]}


def test_the_users_file_is_instead_of_the_machines(places: dict[str, Path], tmp_path: Path) -> None:
    """And the one that the variable names is instead of both, as containers-registries.conf(5) has it."""
    (places["system"] / "registries.conf").write_text(f"{KEY} = []\n")
    (places["user/containers"] / "registries.conf").write_text(MIRROR)
    assert conf(places) == {KEY: ["docker.io"], **tomllib.loads(MIRROR)}
    (tmp_path / "named.conf").write_text(f"{KEY} = ['c.example']\n")
    assert conf(places, **{VARIABLE: str(tmp_path / "named.conf")}) is None


@pytest.mark.parametrize("name", ["registries.conf", "registries.conf.d/search.conf"])
@pytest.mark.parametrize(
    "text", [f"{KEY} = []\n", "[registries.search]\nregistries = ['a.example']\n", "not TOML", "\xff"]
)
def test_what_is_said_already_stays(places: dict[str, Path], name: str, text: str) -> None:
    """Another place, none at all, or what nobody can read: buildah sees it as it is."""
    (places["system"] / name).write_text(text, encoding="latin-1")
    readable = text != "\xff" or name == "registries.conf"
    assert (conf(places) is None) == readable


def test_a_build_gets_the_file_and_the_credentials(places: dict[str, Path], tmp_path: Path) -> None:
    """In the environment of buildah, for every registry that Docker is logged in to, and for Docker Hub by its name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "buildah").write_text(
        f'#!/bin/sh\ncp "${VARIABLE}" {tmp_path}/seen.conf; while [ "$1" != --authfile ]; do shift; done\n'
        f'cp "$2" {tmp_path}/seen.json; docker-credential-alcove-hub get </dev/null; exit 1\n'
    )
    (tmp_path / "bin" / "docker-credential-test").write_text(f'#!/bin/sh\necho "$1 $(cat)" >{tmp_path}/asked\n')
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    auths = {"https://index.docker.io/v1/": {}, "a.example": {}, "b.example": {}}
    docker = {"credsStore": "test", "auths": auths, "credHelpers": {"b.example": "b"}}
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(json.dumps(docker))
    (tmp_path / "mine.conf").write_text(MIRROR)
    variables = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin", VARIABLE: str(tmp_path / "mine.conf")}
    with pytest.raises(MachineError):
        ContainerSource("x86_64", variables, lambda _: None).build("app:1", tmp_path, places["work"])
    assert tomllib.loads((tmp_path / "seen.conf").read_text())[KEY] == ["docker.io"]
    helpers = {"b.example": "b", "a.example": "test", "docker.io": "alcove-hub"}
    assert json.loads((tmp_path / "seen.json").read_text()) == {"credHelpers": helpers}
    assert (tmp_path / "asked").read_text() == "get https://index.docker.io/v1/\n"
