"""Tells a web server about a change; nginx loses no connection by it.

nginx keeps its session on the token, and what it read through it, as long as its master process lives. So a change
takes a new master (SIGUSR2): it inherits the listening sockets and opens a session of its own; then the old one is
asked to finish (SIGQUIT) and its workers serve what they have begun, until the next change at most. When the new
master does not come up, the old one goes on.

Apache's process keeps its session too, and finds the new key through it, under another name. So a graceful restart
(SIGUSR1) does, unless the session is with an enclave that has ended, or is the provider's, which loses handshakes by
one (pkcs11-provider 1.0): then Apache is restarted, by systemd or by the configured command, and open connections end.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from alcove.apps.acm import workers
from alcove.apps.acm.parent import run_quietly
from alcove.apps.acm.settings import OptionSettings
from alcove.apps.acm.workers import running
from alcove.errors import MachineError

UPGRADE_SECONDS: Final = 30.0
_PAUSE: Final = 0.05


def apply(options: OptionSettings, *, keeps_session: bool = False) -> str:
    """Have the server take up what changed; what was done.

    Args:
        options: Which server, and where.
        keeps_session: Whether the session that the server has is with the enclave that runs now, and the engine's.

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
        if keeps_session:
            os.kill(pid, signal.SIGUSR1)
            return f"httpd went on gracefully as process {pid}"
        run_quietly(("systemctl", "restart", options.service))
        return "restarted httpd"
    return f"nginx went on as process {_upgrade(pid, options.pid_file)}"


def _upgrade(old: int, pid_file: Path) -> str:
    """A new master beside the old one, then the old one's end; the new one's pid, and what happened to one before."""
    aside = pid_file.with_name(f"{pid_file.name}.oldbin")
    said = _make_way(aside)
    os.kill(old, signal.SIGUSR2)
    deadline = time.monotonic() + UPGRADE_SECONDS
    while True:
        new = running(pid_file)
        if new is not None and new != old and workers.of(new):
            break
        if time.monotonic() > deadline:
            raise MachineError(
                "nginx did not take up the change, and goes on as before",
                hint="`nginx -t` says why; with `daemon off` it cannot",
            )
        time.sleep(_PAUSE)
    if running(aside) == old:
        os.kill(old, signal.SIGQUIT)
        workers.end_deaf(old)
    return f"{new}{said}"


def _make_way(aside: Path) -> str:
    """Let the master before finish, for nginx keeps two at most; in the end it must."""
    before = running(aside)
    if before is None:
        return ""
    workers.end_deaf(before)
    if _finishes(aside):
        return ""
    os.kill(before, signal.SIGTERM)
    _finishes(aside)
    return f"; process {before} still had connections from the change before, and was ended"


def _finishes(aside: Path) -> bool:
    deadline = time.monotonic() + UPGRADE_SECONDS
    while running(aside) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True
