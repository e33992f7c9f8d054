"""Credentials for Docker Hub, which Docker keeps under another name than skopeo asks for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alcove.errors import MachineError
from alcove.image.sources.credentials import HUB_KEY, skopeo_credentials
from alcove.image.sources.fetch import ContainerSource

HELPER = """\
#!/bin/sh
asked="$1 $(cat)"
echo "$asked" >>{log}
[ "$asked" = "get https://index.docker.io/v1/" ] || {{ echo "credentials not found in native keychain"; exit 1; }}
echo '{{"ServerURL": "", "Username": "reader", "Secret": "open sesame"}}'
"""
CONFIGS: list[dict[str, Any]] = [
    {"credsStore": "test"},
    {"credsStore": "test", "auths": {HUB_KEY: {}, "other:5000": {"auth": "eA=="}}},
    {"credsStore": "other", "credHelpers": {HUB_KEY: "test"}},
]


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """The environment of a user with a helper `test`, which keeps credentials for the Hub alone."""
    programs = tmp_path / "bin"
    programs.mkdir()
    helper = programs / "docker-credential-test"
    helper.write_text(HELPER.format(log=tmp_path / "asked"))
    helper.chmod(0o755)
    (tmp_path / ".docker").mkdir()
    return {"HOME": str(tmp_path), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def configure(user: dict[str, str], config: dict[str, Any]) -> None:
    Path(user["HOME"], ".docker", "config.json").write_text(json.dumps(config))


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
@pytest.mark.parametrize("config", CONFIGS)
def test_skopeo_finds_the_hubs_credentials(user: dict[str, str], tmp_path: Path, config: dict[str, Any]) -> None:
    """The real skopeo is logged in; no secret is in any file."""
    configure(user, config)
    work = tmp_path / "work"
    work.mkdir()
    file, helpers = skopeo_credentials(user, "docker.io", work)
    argv = ["skopeo", "login", "--get-login", "--authfile", str(file), "docker.io"]
    environment = user | {"PATH": f"{user['PATH']}{os.pathsep}{helpers}"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "reader"), done.stderr
    assert not [path for path in work.rglob("*") if path.is_file() and "sesame" in path.read_text()]


def test_a_fetch_brings_the_helper_along(user: dict[str, str], tmp_path: Path) -> None:
    """What is run as skopeo has a helper on its PATH, and its name in the file of --src-authfile."""
    configure(user, CONFIGS[0])
    skopeo = tmp_path / "bin" / "skopeo"
    skopeo.write_text(
        '#!/bin/sh\nwhile [ "$1" != --src-authfile ]; do shift; done\n'
        'name=$(sed "s/.*: *.\\([a-z-]*\\)\\W*$/\\1/" "$2")\n'
        f'echo docker.io | "docker-credential-$name" get >{tmp_path}/got\n'
        "exit 1\n"
    )
    skopeo.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(MachineError):
        ContainerSource("x86_64", user, lambda _: None).fetch("docker://docker.io/team/app:1", work)
    assert json.loads((tmp_path / "got").read_text())["Username"] == "reader"
    assert (tmp_path / "asked").read_text() == f"get {HUB_KEY}\n"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"credsStore": "x; touch /tmp/owned"},
        {"credsStore": "../x"},
        {"credsStore": ["test"]},
        {"credHelpers": "x", "auths": 1},
        {"credsStore": "test", "credHelpers": {"docker.io": "x"}},
        {"credsStore": "test", "auths": {HUB_KEY: {"auth": "eA=="}}},
    ],
)
def test_all_else_is_left_to_skopeo(user: dict[str, str], tmp_path: Path, config: dict[str, Any]) -> None:
    """No helper, what cannot be a helper's name, or credentials that skopeo finds by itself."""
    configure(user, config)
    assert skopeo_credentials(user, "docker.io", tmp_path) == (None, None)
    assert not (tmp_path / "helpers").exists()
