"""Which QEMU is used, and how the host is examined."""

from __future__ import annotations

from pathlib import Path

import pytest

from alcove.errors import MachineError
from alcove.machine.doctor import examine
from alcove.machine.qemu import find_qemu

HAS_DEVICES = "exit 0"
LACKS_DEVICES = "exit 1"


def install(directory: Path, version: str, devices: str = HAS_DEVICES) -> None:
    """A system QEMU that is a shell script."""
    script = f"""#!/bin/sh
if [ "$1" = --version ]; then echo "QEMU emulator version {version} (test)"; else {devices}; fi
"""
    path = directory / "qemu-system-x86_64"
    path.write_text(script)
    path.chmod(0o755)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_a_new_system_qemu_is_used_as_it_is(system: Path) -> None:
    """10.2 is the first that can host an NSM from outside."""
    install(system, "10.2.0")
    qemu = find_qemu(None)
    assert (qemu.binary, qemu.loader, qemu.version) == (system / "qemu-system-x86_64", None, (10, 2, 0))


@pytest.mark.parametrize(
    ("version", "devices", "said"),
    [("10.1.9", HAS_DEVICES, "too old"), ("11.0.0", LACKS_DEVICES, "lacks vhost-user-test-device"), ("?", "", "start")],
)
def test_another_is_refused_with_its_reason(system: Path, version: str, devices: str, said: str) -> None:
    """The message says what was found, the hint what to do."""
    install(system, version, devices)
    with pytest.raises(MachineError, match=said) as caught:
        find_qemu(None)
    assert caught.value.hint is not None
    assert "alcove setup" in caught.value.hint


def test_what_was_found_is_not_asked_again_until_it_changes(system: Path, tmp_path: Path) -> None:
    """The same binary is not started for its version; another one is, and a cache of others' making is passed over."""
    cache, ran = tmp_path / "qemu.json", tmp_path / "ran"
    install(system, "10.2.0", f"echo >> {ran}")
    assert find_qemu(None, cache) == find_qemu(None, cache)
    asked = len(ran.read_text().splitlines())
    find_qemu(None, cache)
    assert len(ran.read_text().splitlines()) == asked
    (system / "qemu-system-x86_64").unlink()
    install(system, "10.10.3", HAS_DEVICES)
    assert find_qemu(None, cache).version == (10, 10, 3)
    for strange in ("", "[]", "{}", '{"key": 1, "version": 2}', '{"key": [], "version": [9, 9, 9]}'):
        cache.write_text(strange)
        assert find_qemu(None, cache).version == (10, 10, 3)
    assert find_qemu(None, tmp_path / "none" / "qemu.json").version == (10, 10, 3)


def test_no_qemu_at_all_is_said(system: Path) -> None:
    """Neither on PATH nor in the tree."""
    with pytest.raises(MachineError, match="none is installed"):
        find_qemu(system / "tools")


def test_a_bare_host_is_examined_without_an_error(system: Path) -> None:
    """Every missing thing is a failed check with a hint; nothing is raised."""
    checks = {check.name: check for check in examine(system / "tools")}
    assert {"bwrap", "mmdebstrap", "skopeo", "buildah", "busybox", "tools tree", "qemu"} == set(checks)
    assert not any(check.ok for check in checks.values())
    assert all(check.hint for check in checks.values())
