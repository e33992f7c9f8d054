"""The layers of the design, and the purity of cores, enforced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "alcove"

# room → rooms that it may import (design: "Layout"); errors and types are free to all.
LAYERS: dict[str, set[str]] = {
    "codec": set(),
    "pkcs11": set(),
    "image": {"codec"},
    "attestation": {"codec"},
    "machine": {"codec"},
    "devices": {"codec", "attestation"},
    "kms": {"codec", "attestation"},
    "vsock": {"devices.unix_path", "devices.vsock.handshake", "enclave.paths", "enclave.runtime"},
    "proxy": {"codec", "vsock"},
    "guest": set(),
    "hostvsock": {"devices.unix_path", "proxy", "vsock"},
    "enclave": {"codec", "image", "machine", "devices", "attestation"},
    "sdk": {"codec", "devices.nsm.messages", "kms.model"},
    "apps": {"codec", "sdk", "vsock", "proxy"},
    "scaffold": set(),
    "testing": {"codec", "image", "attestation", "devices", "kms", "sdk"},
}
FREE = {"errors", "types", "pkcs11", "__init__", ""}
# Where a mistake would cost most: what peers and guests send, what is trusted, what a policy says.
CORES = {
    "codec.cbor", "codec.cose", "codec.cpio_reader", "codec.der", "image.format", "image.sources.tree",
    "devices.vhost_user.session", "devices.virtio.queue", "devices.vsock.muxer", "devices.vsock.connection",
    "devices.nsm.messages", "attestation.document", "attestation.policy", "attestation.verify", "kms.authorize",
    "kms.policy.evaluate", "kms.sigv4", "sdk.cms", "sdk.recipient", "proxy.rules", "proxy.http_head",
    "apps.acm.message", "machine.argv", "machine.jail", "enclave.allocator",
}  # fmt: skip
SHELL_MODULES = {
    "asyncio", "fcntl", "http", "mmap", "os", "random", "secrets", "select", "selectors", "shutil", "signal",
    "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib.request", "uvloop",
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(set(SOURCE.rglob("*.py")) - set(SOURCE.glob("scaffold/templates/**/*.py"))):
        yield ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"), path


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_core(path: Path) -> bool:
    return "\nCore:" in (ast.get_docstring(ast.parse(path.read_text())) or "")


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_a_module_imports_only_from_the_layers_below_it(name: str, path: Path) -> None:
    """An import that climbs the layers, or crosses them, fails."""
    room = name.split(".", 1)[0]
    allowed = LAYERS.get(room)
    if allowed is None:  # cli and the top-level modules
        return
    for target in imports(path):
        if not target.startswith("alcove"):
            continue
        inner = target.removeprefix("alcove").removeprefix(".")
        first = inner.split(".", 1)[0]
        fine = first in FREE | {room, "__version__"} or any(inner == a or inner.startswith(a + ".") for a in allowed)
        parent_package = any(a.startswith(inner + ".") for a in allowed)
        assert fine or parent_package, f"{name} imports {target}"


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_a_core_does_no_input_or_output(name: str, path: Path) -> None:
    """A module whose docstring has a line "Core: …" imports nothing that reads a clock, a file or a socket."""
    if not is_core(path):
        return
    bad = {m for m in imports(path) for shell in SHELL_MODULES if m == shell or m.startswith(shell + ".")}
    assert not bad, f"{name} is a core and imports {sorted(bad)}"


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_no_module_is_longer_than_five_hundred_lines(name: str, path: Path) -> None:
    """A long file is a room that wants a wall."""
    assert len(path.read_text().splitlines()) <= 500


def test_the_cores_are_there() -> None:
    """The protocol and trust cores declare themselves, so the purity test has something to hold."""
    cores = {name for name, path in modules() if is_core(path)}
    assert sorted(CORES - cores) == []


def test_every_room_has_its_layer() -> None:
    """A new package is in the table of layers, or nothing would hold it; and none is there that has gone."""
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")} - {"cli"}
    assert rooms == set(LAYERS) | (FREE & rooms)


def rows() -> Iterator[tuple[str, str]]:
    """Room and text of the table of rooms in ARCHITECTURE.md."""
    text = (SOURCE.parents[1] / "ARCHITECTURE.md").read_text()
    for first, second in re.findall(r"^\| (`[^|]+) \| (.+) \|$", text, re.MULTILINE):
        yield from ((room, second) for room in re.findall(r"`([a-z0-9/_.]+)`", first) if "<" not in first)


def test_the_page_has_every_room_and_no_other() -> None:
    """ARCHITECTURE.md names the packages that are there, and the modules that are in them."""
    named = {room.rstrip("/"): text for room, text in rows() if (SOURCE / room.split("/")[0]).exists()}
    missing = {room for room in (*LAYERS, "pkcs11", "cli") if not any(name.split("/")[0] == room for name in named)}
    assert missing == set()
    assert len(named) > 15
    assert [
        f"{room}: {word}"
        for room, text in named.items()
        for word in re.findall(r"`([a-z0-9_*]+)/?`", text)
        if not [*(SOURCE / room).glob(word), *(SOURCE / room).glob(f"{word}.py")]
    ] == []
