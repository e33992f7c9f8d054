from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alcove.errors import InputError, UsageError
from alcove.scaffold.dev import snapshot
from alcove.scaffold.imports import closure
from alcove.scaffold.kits import KITS
from alcove.scaffold.project import TEMPLATES, create, load
from alcove.scaffold.rootfs import make

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_becomes_a_project(tmp_path: Path, template: str) -> None:
    """Its name is everywhere, no placeholder is left, and `alcove.toml` says what to build."""
    made = create("my-app", template, tmp_path)
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert {"alcove.toml", "Dockerfile", "Makefile", "README.md", "policy.json", ".gitignore"} <= files
    assert not [name for name in files if "@NAME@" in (made / name).read_text()]
    project = load(made)
    assert (project.name, project.eif) == ("my-app", made / "my-app.eif")
    assert set(project.rootfs) <= set(KITS)


@pytest.mark.parametrize("name", ["", "My-app", "a/b", "..", "-a", "a" * 64, "a\n"])
def test_what_cannot_be_a_name_is_refused(tmp_path: Path, name: str) -> None:
    """And nothing is made."""
    with pytest.raises(UsageError, match="cannot be a project's name"):
        create(name, "python", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """Nobody's work is written over."""
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        create("mine", "python", tmp_path)
    with pytest.raises(UsageError, match="no template"):
        create("other", "cobol", tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = ", "not TOML"),
        ("name = 1", "name must be"),
        ("", "name must be"),
        ('name = "a"\ncpu = 1', "unknown key: cpu"),
        ('name = "a"\nrootfs = "python"', "rootfs must be a list"),
        ('name = "a"\nrootfs = ["ruby"]', "no kit ruby"),
        ('name = "a"\nmemory = 0', "memory must be"),
        ('name = "a"\ncpus = true', "cpus must be"),
    ],
)
def test_a_bad_project_file_names_its_key(tmp_path: Path, text: str, expected: str) -> None:
    """One sentence, with the file and the key."""
    (tmp_path / "alcove.toml").write_text(text)
    with pytest.raises(InputError, match=expected):
        load(tmp_path)


def test_without_a_project_the_hint_is_how_to_make_one(tmp_path: Path) -> None:
    """`alcove dev` elsewhere is a usage error."""
    done = subprocess.run([BIN / "alcove", "dev", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no alcove.toml" in done.stderr
    assert "hint: `alcove new` makes a project" in done.stderr


def test_a_snapshot_sees_every_change_but_those_of_the_build(tmp_path: Path) -> None:
    """A file that is new, gone, or other; not the image, the root file system, caches, and what .gitignore names."""
    made = create("app", "static", tmp_path)
    before = snapshot(made)
    assert "main.c" in before
    for name in ("app.eif", "rootfs.tar", "main", ".rootfs-kits"):
        (made / name).touch()
    (made / "__pycache__").mkdir()
    (made / "__pycache__" / "x").touch()
    assert snapshot(made) == before
    (made / "new.c").touch()
    assert set(snapshot(made)) - set(before) == {"new.c"}
    os.utime(made / "main.c", ns=(1, 1))
    assert snapshot(made)["main.c"] != before["main.c"]
    (made / "main.c").unlink()
    assert "main.c" not in snapshot(made)
    (made / ".gitignore").unlink()
    assert "main" in snapshot(made)


@pytest.mark.slow
def test_the_python_template_s_own_tests_pass(tmp_path: Path) -> None:
    """As they are, with the pytest plug-in: a secret is decrypted, another image is refused, garbage is answered."""
    made = create("app", "python", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=made, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


@pytest.mark.slow
def test_the_node_template_s_own_tests_pass(tmp_path: Path) -> None:
    """With nothing but Node.js."""
    if shutil.which("node") is None:
        pytest.skip("node is missing: scripts/setup --tests")
    made = create("app", "node", tmp_path)
    done = subprocess.run(["make", "test"], cwd=made, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass 1" in done.stdout


def test_imports_are_followed_as_far_as_they_are_ours() -> None:
    """Packages above a module count, also imports inside functions; names in modules and other packages do not."""
    sources = {
        "alcove": "",
        "alcove.a": "import os\nfrom alcove.b import c, value\n",
        "alcove.b": "",
        "alcove.b.c": "def f():\n    import alcove.d\n",
        "alcove.d": "import alcove.a\nimport alcovelike\n",
        "alcove.unused": "",
    }
    assert closure(["alcove.a"], sources.get) == set(sources) - {"alcove.unused"}


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """Before anything is fetched."""
    with pytest.raises(UsageError, match="no kit ruby"):
        make(tmp_path / "x.tar", ["ruby"])
    with pytest.raises(UsageError, match="is not a directory"):
        make(tmp_path / "absent" / "x.tar", ["shell"])
