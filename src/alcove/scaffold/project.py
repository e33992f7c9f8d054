"""A project's directory: made from a template, and described by its `alcove.toml`."""

from __future__ import annotations

import re
import shutil
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from alcove.errors import InputError, UsageError
from alcove.scaffold.kits import KITS

TEMPLATES: Final = ("python", "static", "node")
FILE: Final = "alcove.toml"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PLACEHOLDER: Final = "@NAME@"


@dataclass(frozen=True, slots=True)
class Project:
    """What `alcove.toml` says.

    Attributes:
        directory: Where it is.
        name: Of the image and the enclave.
        rootfs: Kits of its root file system; empty for none.
        prepare: A command to run before each build; empty for none.
        cpus: vCPUs.
        memory: MiB.
    """

    directory: Path
    name: str
    rootfs: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    cpus: int = 2
    memory: int = 512

    @property
    def eif(self) -> Path:
        """The image that is built."""
        return self.directory / f"{self.name}.eif"


def create(name: str, template: str, parent: Path) -> Path:
    """Make a project in a new directory, and return that.

    Raises:
        UsageError: The name cannot be one, the directory is there already, or there is no such template.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot be a project's name", hint="lower-case letters, digits and -, such as my-app"
        )
    if template not in TEMPLATES:
        raise UsageError(f"there is no template {template}", hint=f"one of {', '.join(TEMPLATES)}")
    target = parent / name
    if target.exists():
        raise UsageError(f"`{target}` is there already")
    with resources.as_file(resources.files("alcove.scaffold") / "templates" / template) as source:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [path for path in target.rglob("*") if path.is_file()]:
        path.write_text(path.read_text().replace(_PLACEHOLDER, name))
    (target / "gitignore").rename(target / ".gitignore")  # under its own name it would hold for our files
    return target


def load(directory: Path) -> Project:
    """The project in a directory.

    Raises:
        UsageError: There is none.
        InputError: Its file is not what it should be; the message names the key.
    """
    path = directory / FILE
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"there is no {FILE} in `{directory}`", hint="`alcove new` makes a project") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"`{path}` is not TOML: {error}") from None
    unknown = found.keys() - {"name", "rootfs", "prepare", "cpus", "memory"}
    if unknown:
        raise InputError(f"`{path}` has an unknown key: {min(unknown)}")
    kits = _strings(path, found, "rootfs")
    if strange := [kit for kit in kits if kit not in KITS]:
        raise InputError(f"`{path}`: rootfs: there is no kit {strange[0]}", hint=f"one of {', '.join(KITS)}")
    name = found.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"`{path}`: name must be lower-case letters, digits and -")
    prepare = _strings(path, found, "prepare")
    return Project(directory, name, kits, prepare, _number(path, found, "cpus", 2), _number(path, found, "memory", 512))


def _strings(path: Path, found: dict[str, Any], key: str) -> tuple[str, ...]:
    value = found.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"`{path}`: {key} must be a list of texts")
    return tuple(value)


def _number(path: Path, found: dict[str, Any], key: str, default: int) -> int:
    value = found.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"`{path}`: {key} must be a number from 1")
    return value
