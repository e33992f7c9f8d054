"""Programs that are run: their output, their errors, and that nothing of them stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.image.processes import alive, until
from tests.unit.image.storage import Storage

from alcove.errors import MachineError
from alcove.image.sources import programs
from alcove.image.sources.fetch import ContainerSource
from alcove.image.sources.programs import ProgramError, run

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_lines_come_as_they_are_printed() -> None:
    """Standard output and standard error, with carriage returns as ends, and a last line without one."""
    lines: list[str] = []
    run(sh("echo one; echo two >&2; printf 'a\\rb\\n'; printf end"), ENVIRONMENT, lines.append, code="E50")
    assert lines == ["one", "two", "a", "b", "end"]


def test_an_endless_line_is_cut() -> None:
    """Output without line ends does not fill the memory."""
    lines: list[str] = []
    run(sh("head -c 3000000 /dev/zero | tr '\\0' x"), ENVIRONMENT, lines.append, code="E50")
    assert len(lines) == 1
    assert len(lines[0]) <= 1 << 16


def test_ticks_come_while_it_runs() -> None:
    """Also when it says nothing."""
    ticks: list[int] = []
    run(sh("sleep 1"), ENVIRONMENT, lambda _: None, lambda: ticks.append(1), code="E50")
    assert len(ticks) >= 2


def test_the_last_line_is_the_reason() -> None:
    """Blank lines do not count; without any line it is the status."""
    with pytest.raises(ProgramError, match=r"^it broke$"):
        run(sh("echo first; echo 'Error: it broke'; echo; exit 3"), ENVIRONMENT, lambda _: None, code="E50")
    with pytest.raises(ProgramError, match="sh ended with status 3"):
        run(sh("exit 3"), ENVIRONMENT, lambda _: None, code="E50")


def test_a_missing_program_is_named() -> None:
    """With a hint, and the code of what was tried."""
    with pytest.raises(MachineError, match="skopeo is missing") as caught:
        run(["skopeo"], {"PATH": "/nonexistent"}, lambda _: None, code="E50")
    assert caught.value.code == "E50"
    assert "apt install skopeo" in str(caught.value.hint)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_it_started_ends_with_it(error: type[BaseException]) -> None:
    """A program that is given up gets SIGTERM, and so do its children."""
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.extend(map(int, line.split()))
        raise error

    with pytest.raises(error):
        run(sh("sleep 600 & echo $$ $!; wait"), ENVIRONMENT, interrupt, code="E50")
    assert len(pids) == 2
    until(lambda: not any(map(alive, pids)))


def test_what_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that ignores SIGTERM has a while to end."""
    monkeypatch.setattr(programs, "_GRACE", 0.3)
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(sh("trap '' TERM; echo $$; while :; do sleep 0.1; done"), ENVIRONMENT, interrupt, code="E50")
    assert not alive(pids[0])


def test_it_ends_when_we_are_killed(tmp_path: Path) -> None:
    """SIGKILL leaves us no time to end it; the kernel does."""
    if subprocess.run(["setpriv", "--pdeathsig", "TERM", "true"], capture_output=True, check=False).returncode:
        pytest.skip("setpriv cannot set the signal here")
    script = "from alcove.image.sources.programs import run; import os, sys\n"
    script += "run(['sh', '-c', 'echo $$ >' + sys.argv[1] + '; exec sleep 600'], dict(os.environ), print, code='E50')"
    note = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", script, str(note)])
    until(lambda: note.exists() and note.read_text().endswith("\n"))
    pid = int(note.read_text())
    assert alive(pid)
    process.kill()
    process.wait()
    until(lambda: not alive(pid))


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("buildah") or not shutil.which("busybox"), reason="needs root and buildah"
)
def test_an_interrupted_build_leaves_neither_processes_nor_containers(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a RUN step: its process is gone, and so is buildah's working container."""
    storage = Storage(tmp_path / "storage")
    context, work = tmp_path / "context", tmp_path / "work"
    context.mkdir()
    work.mkdir()
    shutil.copy(str(shutil.which("busybox")), context / "busybox")
    steps = 'COPY busybox /bin/busybox\nRUN ["/bin/busybox", "sh", "-c", "echo started; exec /bin/busybox sleep 54321"]'
    (context / "Dockerfile").write_text(f"FROM scratch\n{steps}\nCMD x\n")

    def interrupt(line: str) -> None:
        if line == "started":
            raise KeyboardInterrupt  # as SIGINT does, which tests in the background ignore

    with pytest.raises(KeyboardInterrupt):
        ContainerSource("x86_64", storage.environment, interrupt).build("localhost/interrupted", context, work)
    until(lambda: not any("54321" in command for command in commands()))
    assert storage.run("buildah", "--storage-driver", "vfs", "containers", "--all", "--quiet") == ""
    storage.close()


def commands() -> list[str]:
    """The command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:  # it has just ended
            continue
    return found
