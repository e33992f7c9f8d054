"""What runs in the enclave, from an image's configuration: `cmd`, `env`, `oci` and `log` of the application ramdisk.

Core: a configuration and a tree in, a process and warnings out.

    nitro-cli's rule    Cmd, or Entrypoint where there is no Cmd; as root, in /, searched on init's path (eif.md §7.5)
    --oci-entrypoint    Entrypoint and Cmd joined; USER, WORKDIR and the image's PATH as Docker has them

The second rule is Alcove's own. It needs a file that nitro-cli does not write and our init reads, so it changes PCR0
and PCR2.

    oci: working directory, user id, group id, supplementary group ids…, one a line

Neither shows its parent what it prints, unless the image says so: by its label `alcove.log`, or as it is built. That
takes a file too, with the vsock port on which our init shows it (guest/log.c).
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from alcove.errors import ImageFormatError
from alcove.image.sources.tree import MAX_LINKS, Data, Node
from alcove.image.users import User, look_up

INIT_PATH: Final = "/sbin:/usr/sbin:/bin:/usr/bin"  # eif.md §10 step 10
DOCKER_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # moby, oci/defaults.go
MAX_ACCOUNTS: Final = 4 << 20  # ours: bytes of /etc/passwd and of /etc/group

LOG_LABEL: Final = "alcove.log"
LOG_PORT: Final = 9042

Read = Callable[[Data], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Process:
    """What the enclave runs.

    Attributes:
        command: The program and its arguments, for `cmd`.
        environment: `NAME=value` texts, for `env`.
        identity: Working directory and user, for `oci`; None under nitro-cli's rule.
        log_port: The vsock port on which the parent may see its output, for `log`; None when it may not.
    """

    command: list[str]
    environment: list[str]
    identity: tuple[str, User] | None = None
    log_port: int | None = None

    def files(self) -> dict[bytes, bytes]:
        """The files that tell init, by name, in the order of the ramdisk.

        Raises:
            ImageFormatError: E48 for a value that cannot be written.
        """
        found = {b"cmd": lines(self.command, "command"), b"env": lines(self.environment, "environment")}
        if self.identity is not None:
            directory, user = self.identity
            numbers = [str(number) for number in (user.uid, user.gid, *user.groups)]
            found[b"oci"] = lines([directory, *numbers], "WORKDIR")
        if self.log_port is not None:
            found[b"log"] = lines([str(self.log_port)], "log")
        return found


def nitro_process(settings: Mapping[str, Any]) -> Process:
    """The process by nitro-cli's rule.

    Raises:
        ImageFormatError: E48 when the image has no command, or a configuration that is none.
    """
    return Process(command_of(settings), texts(settings.get("Env") or [], "Env"))


def oci_process(settings: Mapping[str, Any], root: Node, read: Read) -> Process:
    """The process as Docker would run it.

    Args:
        settings: The `config` object of the image's configuration.
        root: The image's tree.
        read: Gives the content of a file in chunks.

    Raises:
        ImageFormatError: E48 when the image has no command, an unknown user, or a configuration that is none.
    """
    entrypoint, command = (texts(settings.get(key) or [], key) for key in ("Entrypoint", "Cmd"))
    if not entrypoint + command:
        raise _no_command()
    directory = _text(settings, "WorkingDir") or "/"
    if not directory.startswith("/"):
        raise ImageFormatError(f"{directory!r} is not absolute", field="WORKDIR", code="E48")
    passwd, group = (_file_text(root, path, read) for path in ("/etc/passwd", "/etc/group"))
    user = look_up(_text(settings, "User"), passwd, group)
    variables = dict(entry.partition("=")[::2] for entry in texts(settings.get("Env") or [], "Env"))
    variables.setdefault("PATH", DOCKER_PATH)
    variables["HOME"] = variables.get("HOME") or user.home or "/"
    environment = [f"{name}={value}" for name, value in variables.items()]
    return Process(entrypoint + command, environment, ("/" + posixpath.normpath(directory).lstrip("/"), user))


def asks_for_log(settings: Mapping[str, Any]) -> bool:
    """Whether the image's labels say that its parent may see what it prints.

    Raises:
        ImageFormatError: E48 when the label is neither true nor false, or a configuration that is none.
    """
    labels = settings.get("Labels") or {}
    if not isinstance(labels, dict):
        raise ImageFormatError("not an object", field="Labels", code="E48")
    value = labels.get(LOG_LABEL, "false")
    if value not in ("true", "false"):
        hint = f'write LABEL {LOG_LABEL}="true" into the Dockerfile, or nothing of it'
        raise ImageFormatError(
            f"{value!r} is neither true nor false", field=f"LABEL {LOG_LABEL}", hint=hint, code="E48"
        )
    return bool(value == "true")


def differences(settings: Mapping[str, Any], root: Node) -> Iterator[str]:
    """A sentence for each way in which nitro-cli's rule runs the image otherwise than Docker would.

    Raises:
        ImageFormatError: E48 when the image has no command, or a configuration that is none.
    """
    command, entrypoint = command_of(settings), settings.get("Entrypoint")
    if settings.get("Cmd") and entrypoint:
        program = texts(entrypoint, "Entrypoint")
        yield f"the enclave runs CMD {command} alone; Docker would pass it to ENTRYPOINT {program}"
    directory, user = _text(settings, "WorkingDir") or "/", _text(settings, "User")
    if directory.rstrip("/"):
        yield f"WORKDIR {directory} is ignored: the program starts in /"
    if user.partition(":")[0] not in {"", "0", "root"} or user.partition(":")[2] not in {"", "0", "root"}:
        yield f"USER {user} is ignored: the program runs as root"
    yield from _program(command[0], directory, texts(settings.get("Env") or [], "Env"), root)


def _program(name: str, directory: str, environment: Sequence[str], root: Node) -> Iterator[str]:
    """What differs about where the program is looked for."""
    path = next((entry[5:] for entry in reversed(environment) if entry.startswith("PATH=")), None)
    if path is None:
        yield "the image sets no PATH: the program sees none, where Docker would set one"
    if "/" in name:
        here, there = (_first(root, name, place) for place in ("/", posixpath.join("/", directory)))
        place, other = "/", directory
    else:
        here, there = _first(root, name, INIT_PATH), _first(root, name, path or DOCKER_PATH)
        place, other = INIT_PATH, "the image's PATH"
    if here is None and there is None:
        yield f"the image holds no program {name}: the enclave will end at once"
    elif here is None or there is None or follow(root, here) is not follow(root, there):
        yield f"{name} is looked for in {place}, and is {here or 'not there'}; Docker would look in {other}: {there}"


def _first(root: Node, name: str, places: str) -> str | None:
    """Where a program is found first; `places` are directories with colons between."""
    paths = (posixpath.join("/", place, name) for place in places.split(":"))
    return next((path for path in paths if _exists(root, path)), None)


def command_of(settings: Mapping[str, Any]) -> list[str]:
    """What the enclave runs: the image's Cmd, or its Entrypoint when there is no Cmd; never both (eif.md §7.5).

    Raises:
        ImageFormatError: E48 when there is neither.
    """
    for key in ("Cmd", "Entrypoint"):
        value = settings.get(key)
        if value:
            return texts(value, key)
    raise _no_command()


def _no_command() -> ImageFormatError:
    hint = 'add a CMD to the Dockerfile, such as CMD ["/app"]'
    return ImageFormatError("unsupported entry point: the image has neither Cmd nor Entrypoint", hint=hint, code="E48")


def texts(value: object, key: str) -> list[str]:
    """A list of texts from an image's configuration.

    Raises:
        ImageFormatError: E48 when it is something else.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ImageFormatError("not a list of texts", field=key, code="E48")
    return value


def _text(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key) or ""
    if not isinstance(value, str):
        raise ImageFormatError("not a text", field=key, code="E48")
    return value


def lines(values: Sequence[str], what: str) -> bytes:
    """A file of init's (eif.md §7.5): a value a line.

    Raises:
        ImageFormatError: E48 for a value with a line feed, NUL or half a character, which init could not read back.
    """
    for value in values:
        if "\n" in value or "\0" in value or _half_a_character(value):
            raise ImageFormatError(
                f"{value!r} has a line feed, NUL or half a character",
                field=what,
                hint="put the script into a file of the image",
                code="E48",
            )
    return b"".join(value.encode() + b"\n" for value in values)


def _half_a_character(value: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in value)


def _file_text(root: Node, path: str, read: Read) -> str:
    """Content of a small text file of the image; empty when there is none."""
    node = follow(root, path)
    if node is None or node.data is None or not stat.S_ISREG(node.mode):
        return ""
    if node.data.size > MAX_ACCOUNTS:
        raise ImageFormatError(f"more than {MAX_ACCOUNTS} bytes", field=path, code="E48")
    return b"".join(read(node.data)).decode("utf-8", "replace")


def _exists(root: Node, path: str) -> bool:
    node = follow(root, path)
    return node is not None and not node.is_dir


def follow(root: Node, path: str) -> Node | None:
    """The node at a path, through symbolic links, none of which leads out of the tree."""
    stack, links = [root], 0
    todo = path.encode("utf-8", "replace").split(b"/")[::-1]
    while todo:
        part = todo.pop()
        if part in {b"", b"."}:
            continue
        if part == b"..":
            del stack[max(1, len(stack) - 1) :]
            continue
        child = stack[-1].children.get(part) if stack[-1].is_dir else None
        if child is None:
            return None
        if not stat.S_ISLNK(child.mode):
            stack.append(child)
            continue
        links += 1
        if links > MAX_LINKS:
            return None
        del stack[1 if child.target.startswith(b"/") else len(stack) :]
        todo += child.target.split(b"/")[::-1]
    return stack[-1]
