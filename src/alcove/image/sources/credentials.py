"""Docker's credential files, for skopeo.

skopeo reads $REGISTRY_AUTH_FILE, its own auth.json and ~/.docker/config.json by itself, credential helpers included.
What it lacks is $DOCKER_CONFIG, and `credsStore`, the helper that Docker asks for every registry. For the latter it
gets a file that names the helper; no secret is ever written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from alcove.image.sources.references import HUB

MAX_CONFIG: Final = 1 << 20  # ours: bytes of a config.json


def auth_file(environment: Mapping[str, str], host: str, directory: Path) -> Path | None:
    """The file to give to skopeo's `--authfile`; None when it finds the right one itself.

    Args:
        environment: REGISTRY_AUTH_FILE, DOCKER_CONFIG (the directory, or as nitro-cli has it, the file) and HOME.
        host: The registry, with its port.
        directory: Where a file may be written.
    """
    if environment.get("REGISTRY_AUTH_FILE"):
        return None
    named = environment.get("DOCKER_CONFIG")
    path = Path(named) if named else Path(environment.get("HOME") or "/nonexistent", ".docker")
    path = path / "config.json" if path.is_dir() else path
    config = _read(path)
    store = _store(config, host)
    if store is not None:
        made = directory / "auth.json"
        made.write_text(json.dumps({"credHelpers": {host: store}}))
        return made
    return path if named and path.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    """The configuration; empty when it is none, which skopeo then complains about."""
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _store(config: Mapping[str, Any], host: str) -> str | None:
    """The helper that only `credsStore` names for a registry."""
    store, helpers, auths = (config.get(key) for key in ("credsStore", "credHelpers", "auths"))
    if not isinstance(store, str) or not store or host == HUB:
        return None
    if isinstance(helpers, dict) and host in helpers:
        return None
    entry = auths.get(host) if isinstance(auths, dict) else None
    return None if isinstance(entry, dict) and entry.get("auth") else store
