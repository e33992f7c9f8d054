"""The verifier by itself: with `cryptography` alone, and without what only Linux has."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.attestation.chains import NOW, World

import alcove
import alcove.attestation

# Modules that Windows does not have, and macOS not all of.
FOREIGN = (
    "_curses", "_posixshmem", "crypt", "curses", "fcntl", "grp", "nis", "ossaudiodev", "pty", "pwd", "readline",
    "resource", "spwd", "syslog", "termios", "tty",
)  # fmt: skip
MISSING_CALLS = ("fork", "getuid", "geteuid", "memfd_create", "pidfd_open", "sched_getaffinity", "chown", "mkfifo")
PROGRAM = """
import os, sys
foreign, calls = set({foreign}), {calls}
for call in calls:
    if hasattr(os, call):
        delattr(os, call)
for name in foreign:
    sys.modules.pop(name, None)

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in foreign:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
{then}
"""
VERIFY = """
import datetime, pathlib
import alcove.attestation as a
from alcove.attestation import *
verified = verify(
    pathlib.Path("good.cbor").read_bytes(), roots=[Root.from_pem(pathlib.Path("root.pem").read_bytes())],
    policy=AllOf([NoDebugMode()]), at=datetime.datetime.fromisoformat("{now}"),
)
print(verified.document.module_id, sorted(name.partition(".")[0] for name in sys.modules if name.startswith("alcove.")))
"""
COMMAND = """
from alcove.cli.main import alcove
sys.argv = ["alcove", *{arguments}]
alcove()
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An interpreter that finds this package, `cryptography` and what that needs, and no other package."""
    directory = tmp_path_factory.mktemp("bare")
    venv.create(directory, with_pip=False, symlinks=True)
    packages = next(directory.glob("lib/python*/site-packages"))
    (packages / "alcove").symlink_to(Path(alcove.__file__).parent)
    for name in ("cryptography", "cffi", "pycparser"):
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            if top != ".." and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    return directory / "bin" / "python"


@pytest.fixture
def place(tmp_path: Path, world: World) -> Path:
    (tmp_path / "root.pem").write_bytes(world.issuers[0].certificate.public_bytes(Encoding.PEM))
    (tmp_path / "good.cbor").write_bytes(world.document())
    (tmp_path / "policy.json").write_text(json.dumps({"PCR0": world.pcrs[0].hex()}))
    return tmp_path


def run(python: Path, place: Path, then: str, foreign: tuple[str, ...] = FOREIGN) -> subprocess.CompletedProcess[str]:
    calls = MISSING_CALLS if foreign else ()
    program = PROGRAM.format(foreign=foreign, calls=calls, then=then)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["ALCOVE_STATE"] = str(place / "state")
    return subprocess.run(
        [python, "-I", "-c", program], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("foreign", [(), FOREIGN], ids=["linux", "elsewhere"])
def test_the_library_needs_cryptography_and_no_particular_system(
    python: Path, place: Path, foreign: tuple[str, ...]
) -> None:
    """It is imported and verifies where no other package is, and no module that only Unix has."""
    done = run(python, place, VERIFY.format(now=NOW.isoformat()), foreign)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("i-0123456789abcdef0-enc")


@pytest.mark.parametrize("foreign", [(), FOREIGN], ids=["linux", "elsewhere"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["verify", "good.cbor", "--root", "root.pem", "--at", NOW.isoformat(), "--policy", "policy.json"], 0),
        (["verify", "good.cbor", "--root", "aws", "--json"], 3),
        (["verify", "good.cbor"], 1),
        (["show", "good.cbor"], 0),
        (["request"], 1),
    ],
)
def test_the_command_runs_there_too(
    python: Path, place: Path, foreign: tuple[str, ...], arguments: list[str], status: int
) -> None:
    """`alcove attest` verifies and shows; what it cannot do it says in a line."""
    done = run(python, place, COMMAND.format(arguments=["attest", *arguments]), foreign)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == ("good.cbor" in arguments and status != 1)


def test_other_commands_say_what_they_need(python: Path, place: Path) -> None:
    """Whoever asks the bare package for an enclave learns which package to install."""
    done = run(python, place, COMMAND.format(arguments=["run-enclave"]))
    assert done.returncode == 2
    assert "extra `host`" in done.stderr


def test_the_bare_interpreter_is_bare(python: Path, place: Path) -> None:
    """The other tests would prove nothing if it found the packages of this environment."""
    done = run(python, place, "import yaml", ())
    assert "No module named 'yaml'" in done.stderr
    assert "No module named 'fcntl'" in run(python, place, "import fcntl").stderr


def test_the_package_alone_requires_cryptography_alone() -> None:
    """Everything else belongs to an extra, so that `pip install alcove` brings what a verifier needs."""
    always = [line for line in importlib.metadata.requires("alcove") or () if "extra ==" not in line]
    assert [line.partition(">=")[0] for line in always] == ["cryptography"]


def test_the_public_names_are_there() -> None:
    """What `__all__` promises can be imported, and is sorted."""
    names = alcove.attestation.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(alcove.attestation, name) for name in names)
