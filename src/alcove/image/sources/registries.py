"""Where buildah looks for a name without a registry in a Dockerfile's FROM: at Docker Hub, as Docker does.

Debian's configuration has aliases for some names and no place for all others, such as `grafana/grafana`. What a machine
or user says of it goes before (containers-registries.conf(5)).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from alcove.image.sources.references import HUB

VARIABLE: Final = "CONTAINERS_REGISTRIES_CONF"
MAX_CONFIG: Final = 1 << 20  # ours: bytes of a registries.conf
SYSTEM: Final = Path("/etc/containers")

_KEY: Final = "unqualified-search-registries"


def registries_conf(environment: Mapping[str, str], directory: Path, system: Path = SYSTEM) -> Path | None:
    """A file for $CONTAINERS_REGISTRIES_CONF that adds Docker Hub to what is configured; None where that needs nothing.

    Args:
        environment: CONTAINERS_REGISTRIES_CONF, XDG_CONFIG_HOME and HOME.
        directory: Where the file may be written.
        system: Where the machine's configuration is.
    """
    users = _users(environment)
    named = environment.get(VARIABLE)
    main = (
        Path(named)
        if named
        else next((p / "registries.conf" for p in users if (p / "registries.conf").is_file()), None)
    )
    text = _text(main or system / "registries.conf")
    if text is None or _says(text) or any(_says(_text(path) or "") for path in _drop_ins([system, *users])):
        return None
    made = directory / "registries.conf"
    made.write_text(f'{_KEY} = ["{HUB}"]\n{text}')
    return made


def _users(environment: Mapping[str, str]) -> list[Path]:
    home = environment.get("XDG_CONFIG_HOME") or (f"{environment['HOME']}/.config" if environment.get("HOME") else "")
    return [Path(home, "containers")] if home else []


def _drop_ins(directories: list[Path]) -> Iterator[Path]:
    for directory in directories:
        yield from sorted((directory / "registries.conf.d").glob("*.conf"))


def _text(path: Path) -> str | None:
    """The file's content, empty when there is none; None when it cannot be read, which buildah then complains about."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_CONFIG).decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        return None


def _says(text: str) -> bool:
    """Whether a configuration names places itself, in the present form or the old; malformed ones are left alone."""
    try:
        config: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return True
    registries = config.get("registries")
    return _KEY in config or (isinstance(registries, dict) and "search" in registries)
