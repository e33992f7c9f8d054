"""The guest's init: that it is there, that it is the same everywhere, and that it is what it should be."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from alcove import guest
from alcove.errors import MachineError

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src/alcove/guest"
# What the pinned compiler makes of the C files. Whoever changes the source, the flags or the compiler changes PCR1 of
# every image built from then on, and writes the new digests here.
EXPECTED = {
    "x86_64": "f10730f5aa78206cd6ca438cf8fa718c43a199907aac8725b6fd9ac33b80e772",
    "aarch64": "63c42a003b467518aace761e4c8a8a4046dde439120fd3ebafe6b71fa8be251a",
}
MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine, elf.h
_ELF = struct.Struct("<4sBBB9xHHI QQQ IHHHHHH")  # Elf64_Ehdr: magic class data version type machine …
_SEGMENT = struct.Struct("<II QQQQQQ")  # Elf64_Phdr: type flags …
PT_INTERP = 3


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """scripts/hatch_build.py, as hatchling loads it."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "scripts/hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("arch", EXPECTED)
def test_the_init_that_was_built_is_the_recorded_one(arch: str) -> None:
    """PCR1 of an image can be reproduced only if these bytes never move by accident."""
    assert hashlib.sha256(guest.init_binary(arch).read_bytes()).hexdigest() == EXPECTED[arch]


@pytest.mark.parametrize("place", ["a", "another/deeper directory"])
def test_the_place_of_the_build_leaves_no_trace(hook: ModuleType, tmp_path: Path, place: str) -> None:
    """Compiled in any directory, under any name, the bytes are the recorded ones."""
    directory = tmp_path / place
    directory.mkdir(parents=True)
    for path in SOURCE.glob("*.[ch]"):
        shutil.copy(path, directory / path.name)
    hook.compile_c(hook.INIT, directory, directory / "made", "x86_64")
    assert hashlib.sha256((directory / "made").read_bytes()).hexdigest() == EXPECTED["x86_64"]
    assert [path.name for path in directory.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("arch", EXPECTED)
def test_the_init_is_a_static_program_of_its_architecture(arch: str) -> None:
    """There is no loader and no library in a boot ramdisk."""
    data = guest.init_binary(arch).read_bytes()
    fields = _ELF.unpack_from(data)
    assert fields[0] == b"\x7fELF"
    assert fields[5] == MACHINES[arch]
    offset, size, count = fields[8], fields[12], fields[13]
    kinds = [_SEGMENT.unpack_from(data, offset + size * number)[0] for number in range(count)]
    assert PT_INTERP not in kinds


@pytest.mark.skipif(sys.platform != "linux", reason="runs a Linux program")
def test_outside_an_enclave_it_does_nothing() -> None:
    """Started by hand it must not mount, kill or restart anything."""
    done = subprocess.run([guest.init_binary("x86_64")], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "process 1" in done.stderr


def test_a_missing_init_is_an_error_with_a_way_out() -> None:
    """The message names the architecture, the hint the command."""
    with pytest.raises(MachineError, match="riscv64") as caught:
        guest.init_binary("riscv64")
    assert caught.value.hint is not None
    assert "hatch_build" in caught.value.hint


def test_a_second_build_compiles_nothing(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a changed source, or a missing result, calls the compiler."""
    compiled: list[str] = []

    def compile_c(product: Any, directory: Path, output: Path, arch: str) -> None:
        compiled.append(arch)
        output.write_bytes(b"made")

    monkeypatch.setattr(hook, "compile_c", compile_c)
    directory = tmp_path / hook.INIT.directory
    directory.mkdir(parents=True)
    (directory / "init.c").write_text("one")
    (directory / "init.h").write_text("one")
    hook.build(tmp_path, hook.INIT)
    hook.build(tmp_path, hook.INIT)
    assert sorted(compiled) == ["aarch64", "x86_64"]
    for number, name in enumerate(("init.c", "init.h")):
        (directory / name).write_text("two")
        hook.build(tmp_path, hook.INIT)
        assert len(compiled) == 4 + 2 * number


def test_the_command_lines_are_constant() -> None:
    """They are measured: a change is a change of PCR0 and PCR1 of every image."""
    assert guest.DEFAULT_CMDLINES == {
        "x86_64": "reboot=t panic=-1 pci=off console=ttyS0 random.trust_cpu=on",
        "aarch64": "panic=-1 pci=off console=ttyAMA0 console=ttyS0 random.trust_cpu=on",
    }
