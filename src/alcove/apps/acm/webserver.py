"""Tells a web server about a change; nginx loses no connection by it.

nginx keeps its session on the token, and what it read through it, as long as its master process lives. So a change
takes a new master (SIGUSR2): it inherits the listening sockets and opens a session of its own; then the old one is
asked to finish (SIGQUIT) and its workers serve what they have begun. When the new master does not come up, the old
one goes on.

Apache keeps them likewise, through a graceful restart too: it would find another key than the certificate's and end. So
it is restarted, by systemd or by the configured command, and open connections end.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from alcove.apps.acm.parent import run_quietly
from alcove.apps.acm.settings import OptionSettings
from alcove.errors import MachineError

UPGRADE_SECONDS: Final = 30.0
_PAUSE: Final = 0.05


def apply(options: OptionSettings) -> str:
    """Have the server take up what changed; what was done.

    Raises:
        MachineError: It does not; it goes on as before.
    """
    if options.reload_command:
        run_quietly(options.reload_command)
        return f"ran `{' '.join(options.reload_command)}`"
    pid = running(options.pid_file)
    if pid is None:
        return f"{options.service} is not running: start it, it will find its key"
    if options.service == "httpd":
        run_quietly(("systemctl", "restart", options.service))
        return "restarted httpd"
    return f"nginx went on as process {_upgrade(pid, options.pid_file)}"


def running(pid_file: Path) -> int | None:
    """The process in a file, if it lives."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def _upgrade(old: int, pid_file: Path) -> int:
    """A new master beside the old one, then the old one's end; the new one's pid."""
    aside = pid_file.with_name(f"{pid_file.name}.oldbin")
    deadline = time.monotonic() + UPGRADE_SECONDS
    while running(aside) is not None and time.monotonic() < deadline:
        time.sleep(_PAUSE)  # the one before is still finishing, and nginx keeps two at most
    os.kill(old, signal.SIGUSR2)
    deadline = time.monotonic() + UPGRADE_SECONDS
    while True:
        new = running(pid_file)
        if new is not None and new != old and _has_workers(new):
            break
        if time.monotonic() > deadline:
            raise MachineError(
                "nginx did not take up the change, and goes on as before",
                hint="`nginx -t` says why; with `daemon off` it cannot",
            )
        time.sleep(_PAUSE)
    if running(aside) == old:
        os.kill(old, signal.SIGQUIT)
    return new


def _has_workers(master: int) -> bool:
    try:
        return bool(Path(f"/proc/{master}/task/{master}/children").read_text().split())
    except OSError:
        return False
