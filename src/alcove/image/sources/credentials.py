"""Docker's credential files, for skopeo.

skopeo reads $REGISTRY_AUTH_FILE, its own auth.json and ~/.docker/config.json by itself, credential helpers included.
What it lacks is $DOCKER_CONFIG; `credsStore`, the helper that Docker asks for every registry; and the name by which
Docker asks it for Docker Hub's. It gets a file that names the helper, or for Docker Hub a helper of ours that asks
Docker's under that name; no secret is ever written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from alcove.image.sources.references import HUB

MAX_CONFIG: Final = 1 << 20  # ours: bytes of a config.json
HUB_KEY: Final = "https://index.docker.io/v1/"  # Docker's name for the Hub (docker/cli, registry.IndexServer)

_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # what follows `docker-credential-` in a program's name
_OURS: Final = "alcove-hub"


def skopeo_credentials(environment: Mapping[str, str], host: str, directory: Path) -> tuple[Path | None, str | None]:
    """The file to give to skopeo's `--authfile`, and a directory for its PATH; None where it needs none.

    Args:
        environment: REGISTRY_AUTH_FILE, DOCKER_CONFIG (the directory, or as nitro-cli has it, the file) and HOME.
        host: The registry, with its port.
        directory: Where files may be written.
    """
    if environment.get("REGISTRY_AUTH_FILE"):
        return None, None
    path = _path(environment)
    store = _store(_read(path), host)
    if store is None:
        return path if environment.get("DOCKER_CONFIG") and path.is_file() else None, None
    return _written({host: store}, directory)


def buildah_credentials(environment: Mapping[str, str], directory: Path) -> tuple[Path | None, str | None]:
    """The same for a build, which may ask any registry: every one that Docker is logged in to, and Docker Hub.

    Where the configuration holds secrets too, which would have to be copied, it is left as it is.
    """
    if environment.get("REGISTRY_AUTH_FILE"):
        return None, None
    path = _path(environment)
    config = _read(path)
    auths, helpers = (value if isinstance(value, dict) else {} for value in map(config.get, ("auths", "credHelpers")))
    stores = {host: store for host in (*auths, HUB) if host != HUB_KEY and (store := _store(config, host))}
    if not stores or any(isinstance(entry, dict) and entry.get("auth") for entry in auths.values()):
        return path if environment.get("DOCKER_CONFIG") and path.is_file() else None, None
    return _written(helpers | stores, directory)


def _path(environment: Mapping[str, str]) -> Path:
    """Docker's configuration file."""
    named = environment.get("DOCKER_CONFIG")
    path = Path(named) if named else Path(environment.get("HOME") or "/nonexistent", ".docker")
    return path / "config.json" if path.is_dir() else path


def _written(helpers: dict[str, str], directory: Path) -> tuple[Path, str | None]:
    """A file that names the helper of each registry, and the directory of ours where one of them is Docker Hub."""
    programs = _hub_helper(helpers[HUB], directory / "helpers") if HUB in helpers else None
    made = directory / "auth.json"
    made.write_text(json.dumps({"credHelpers": helpers | ({HUB: _OURS} if programs else {})}))
    return made, programs


def _read(path: Path) -> dict[str, Any]:
    """The configuration; empty when it is none, which skopeo then complains about."""
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _store(config: Mapping[str, Any], host: str) -> str | None:
    """The helper that only `credsStore` names for a registry, or for the Hub, where skopeo asks for another name."""
    store, helpers, auths = (config.get(key) for key in ("credsStore", "credHelpers", "auths"))
    helpers = helpers if isinstance(helpers, dict) else {}
    auths = auths if isinstance(auths, dict) else {}
    name = HUB_KEY if host == HUB else host
    if host == HUB:
        store = helpers.get(HUB_KEY, store)
    entry = auths.get(name)
    if host in helpers or (isinstance(entry, dict) and entry.get("auth")):
        return None
    return store if isinstance(store, str) and _HELPER.fullmatch(store) else None


def _hub_helper(store: str, directory: Path) -> str:
    """Write the helper that asks another for the Hub's credentials by Docker's name, and give its directory."""
    directory.mkdir(exist_ok=True)
    program = directory / f"docker-credential-{_OURS}"
    program.write_text(f'#!/bin/sh\ncat >/dev/null\nprintf %s {HUB_KEY} | docker-credential-{store} "$@"\n')
    program.chmod(0o700)
    return os.fspath(directory)
