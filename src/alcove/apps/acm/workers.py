"""The web server's processes: which they are, whether they can reach the token, and which of them hear nothing.

libp11 up to 0.4.13 (OpenSC/libp11#579) never returns to a worker that opens its first session while the token's socket
cannot be reached. nginx's master waits for such a worker as long as it lives, and takes up no change meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

DEAF_SECONDS: Final = 10.0  # for a worker to say that it finishes; one that signs does so after the signature
_WORKER: Final = "nginx: worker process"  # a worker's whole title, until it has heard that it is to finish
_PAUSE: Final = 0.05


def running(pid_file: Path) -> int | None:
    """The process in a file, if it lives."""
    try:
        pid = int(pid_file.read_text())
        if pid > 0:  # 0 and less are groups of processes
            os.kill(pid, 0)
    except (OSError, ValueError, OverflowError):
        return None
    return pid if pid > 0 else None


def of(master: int) -> list[int]:
    """The workers of a master."""
    try:
        return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]
    except OSError:
        return []


def end_deaf(master: int) -> None:
    """End those workers of an nginx that is to finish which do not hear it: they serve nobody, and keep it for ever."""
    deadline = time.monotonic() + DEAF_SECONDS
    while deaf := [pid for pid in of(master) if _title(pid) == _WORKER]:
        if time.monotonic() > deadline:
            for pid in deaf:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(_PAUSE)


def shut_out(socket: Path, pid_file: Path) -> str | None:
    """A sentence, when the workers are another user who cannot connect to the socket; only root can find out."""
    master = running(pid_file)
    found = of(master) if master is not None else []
    if os.geteuid() or not found:
        return None
    try:
        user, group, groups = _identity(found[0])
        tried = subprocess.run(["test", "-w", socket], user=user, group=group, extra_groups=groups, check=False)
    except (OSError, LookupError):
        return None
    if not tried.returncode or not socket.exists():
        return None
    return f"the web server's workers ({_name(user)}) cannot reach {socket}: set socket_group, and let them pass to it"


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace")
    except OSError:
        return ""


def _identity(pid: int) -> tuple[int, int, list[int]]:
    """Effective user and group, and the other groups (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return int(fields["Uid"][1]), int(fields["Gid"][1]), [int(group) for group in fields["Groups"]]


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
