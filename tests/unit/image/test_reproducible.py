"""The same Dockerfile on two days, in two directories, by two users: the same image (eif.md §11)."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BUSYBOX = next((path for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")) if path.exists()), None)
NAME = "reproducible"
DOCKERFILE = """\
FROM scratch
COPY --chmod=755 busybox /bin/busybox
COPY data /data
RUN ["/bin/busybox", "sh", "-c", "mkdir -p /made/by; echo run >/made/by/run; busybox ln /made/by/run /made/link"]
RUN ["/bin/busybox", "chown", "-R", "12:34", "/made/by"]
WORKDIR /srv/app
ENV A=b
CMD ["/bin/busybox", "true"]
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed"),
    pytest.mark.skipif(BUSYBOX is None, reason="busybox-static is not installed"),
]


def no_second_user() -> str | None:
    """Why there cannot be a second user here; None when there can."""
    if os.getuid() != 0:
        return "only root can become another user"
    if shutil.which("newuidmap") is None:
        return "newuidmap is not installed (Debian: uidmap)"
    allowed = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return None if allowed.returncode == 0 else "mounts cannot be unshared"


@dataclass
class Builder:
    """A person who builds: where, when, as whom, and with which habits."""

    home: Path
    context: str
    mtime: int
    uid: int = field(default_factory=os.getuid)
    umask: int = 0o022
    mode: int = 0o644

    def build(self, epoch: int | None) -> tuple[bytes, dict[str, str]]:
        """The image and its measurements."""
        self.home.mkdir()
        context = self._context()
        blobs = self.home / "blobs"
        blobs.mkdir()
        for name in ("bzImage", "cmdline", "init", "nsm.ko"):
            (blobs / name).write_text(name)
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, self.uid, self.uid)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.home), "TMPDIR": str(self.home)}
        environment["CONTAINERS_STORAGE_CONF"] = str(self._storage())
        environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        if epoch is not None:
            environment["SOURCE_DATE_EPOCH"] = str(epoch)
        output = self.home / "app.eif"
        arguments = [sys.executable, Path(__file__).with_name("build_as.py"), self.uid, context, blobs, output, NAME]
        done = subprocess.run(
            [*self._with_ids(), *map(str, arguments)],
            env=environment, umask=self.umask, cwd="/", capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        measured: dict[str, str] = json.loads(done.stdout)
        return output.read_bytes(), measured

    def _storage(self) -> Path:
        """A store of the builder's own: nothing is left in the machine's, and nothing found there."""
        path = self.home / "storage.conf"
        path.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{self.home}/store"\nrunroot = "{self.home}/run"\n')
        return path

    def _context(self) -> Path:
        context = self.home / self.context
        (context / "data" / "deep").mkdir(parents=True)
        (context / "Dockerfile").write_text(DOCKERFILE)
        (context / "data" / "deep" / "file").write_text("content")
        (context / "data" / "link").symlink_to("deep/file")
        assert BUSYBOX is not None
        shutil.copy(BUSYBOX, context / "busybox")
        for number, path in enumerate(sorted(context.rglob("*"), reverse=True)):
            path.chmod(0o755 if path.is_dir() else self.mode)
            os.utime(path, (self.mtime + number, self.mtime + number), follow_symlinks=False)
        return context

    def _with_ids(self) -> list[str]:
        """What gives a user without an entry in /etc/subuid ids for the image's users, in a mount namespace alone."""
        if self.uid == os.getuid():
            return []
        entry = self.home / "subid"
        entry.write_text(f"{pwd.getpwuid(self.uid).pw_name}:200000:65536\n")
        script = f'mount --bind {entry} /etc/subuid && mount --bind {entry} /etc/subgid && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh"]


@pytest.fixture
def homes() -> Iterator[Path]:
    """A directory that any user may enter; what user namespaces leave in it goes too."""
    with tempfile.TemporaryDirectory(prefix="alcove-homes-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=["one user", "two users"])
def strangers(request: pytest.FixtureRequest, homes: Path) -> tuple[Builder, Builder]:
    """Two builders with nothing in common but the Dockerfile."""
    first = Builder(homes / "one", "app", 1_000_000_000)
    second = Builder(homes / "two", "another directory", 1_700_000_000, umask=0o077)
    if request.param == "two users":
        if (reason := no_second_user()) is not None:
            pytest.skip(reason)
        second.uid = pwd.getpwnam("nobody").pw_uid
    return first, second


def test_with_source_date_epoch_the_whole_file_is_the_same(strangers: tuple[Builder, Builder]) -> None:
    """Byte for byte, BuildTime and the container image's id included."""
    (first, _), (second, _) = (builder.build(1_750_000_000) for builder in strangers)
    assert first == second


def test_without_it_the_measurements_are_the_same(strangers: tuple[Builder, Builder]) -> None:
    """Only BuildTime differs: the image's layers have a fixed time of their own."""
    (first, one), (second, two) = (builder.build(None) for builder in strangers)
    assert one == two
    assert first != second


def test_what_is_in_the_image_does_count(homes: Path) -> None:
    """The comparison can fail: another mode of a file in the context is another image."""
    (_, one), (_, two) = (
        Builder(homes / name, "app", 1, mode=mode).build(1) for name, mode in (("one", 0o644), ("two", 0o600))
    )
    assert one["PCR1"] == two["PCR1"]
    assert one["PCR2"] != two["PCR2"]
