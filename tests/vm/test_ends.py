from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# what the application does → cause, exit status, and whether the enclave is in debug mode
ENDS = {
    "exits": ("exit 7", "exited", 7, False),
    "crashes": ("kill -SEGV $$", "signalled", 139, False),
    "out-of-memory": ("tail /dev/zero", "out of memory", 137, False),
    "panics": ("echo c > /proc/sysrq-trigger", "panic", None, True),
    "panics-unseen": ("echo c > /proc/sysrq-trigger", "reset", None, False),
    "reboots": ("reboot -f", "reset", None, False),
}


@pytest.fixture(scope="module")
def image(cli: Any) -> Callable[[str, str], Path]:
    """Builds an image whose application is one line of shell, after a moment in which the start can end well."""
    context = cli.directory / "ends"
    context.mkdir()
    busybox = next(path for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")) if path.exists())
    shutil.copy(busybox, context / "busybox")

    def build(name: str, line: str) -> Path:
        command = f'["/bin/busybox", "sh", "-c", "sleep 2; {line}"]'
        links = " && ".join(f"/bin/busybox ln -s busybox /bin/{applet}" for applet in ("sleep", "tail", "reboot"))
        (context / "Dockerfile").write_text(
            f'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "sh", "-c", "{links}"]\nCMD {command}\n'
        )
        target: Path = cli.directory / f"{name}.eif"
        cli.json(
            "alcove", "build-enclave", "--docker-dir", context, "--docker-uri", f"{name}:t", "--output-file", target
        )
        return target

    return build


def ended(cli: Any, enclave_id: str, seconds: float = 240) -> dict[str, Any]:
    """The entry of an enclave that ends by itself."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        entries = cli.json("alcove", "describe-enclaves", "--all")
        entry: dict[str, Any] = next(entry for entry in entries if entry["EnclaveID"] == enclave_id)
        if entry["State"] == "ENDED":
            return entry
        time.sleep(0.2)
    raise AssertionError(f"{enclave_id} still runs")


@pytest.mark.parametrize("name", list(ENDS))
def test_how_an_enclave_ended_is_told(cli: Any, image: Callable[[str, str], Path], name: str) -> None:
    """Exit, crash, want of memory, panic and reboot are told apart, and nothing is left behind."""
    line, cause, status, debug = ENDS[name]
    started = cli.run_enclave(image(name, line), *(["--debug-mode"] if debug else []), "--enclave-name", name)
    entry = ended(cli, started["EnclaveID"])
    assert (entry["Cause"], entry["ExitStatus"]) == (cause, status), entry
    assert not (cli.run_directory / "enclaves" / started["EnclaveID"]).exists()
    if debug:
        shown = cli("alcove", "logs", name)
        assert "Linux version" in shown.stdout
        assert "Kernel panic - not syncing: sysrq triggered crash" in shown.stdout
    else:
        assert cli("alcove", "logs", name).returncode == 44


def test_top_counts_what_an_enclave_does(cli: Any, debug_enclave: dict[str, Any]) -> None:
    """Its counters as JSON, and one line of the table."""
    (stats,) = [s for s in cli.json("alcove", "top", "--json") if s["EnclaveID"] == debug_enclave["EnclaveID"]]
    assert stats["Connections"] >= 1  # the heartbeat
    assert stats["NSMRequests"] >= 1  # the kernel's random numbers
    assert stats["ResidentBytes"] > 32 << 20
    table = cli("alcove", "top", "--once").stdout.splitlines()
    assert any(line.startswith(debug_enclave["EnclaveName"]) for line in table[1:])


def test_logs_show_a_running_enclaves_console(cli: Any, debug_enclave: dict[str, Any]) -> None:
    """All that is kept, without waiting for more."""
    done = cli("alcove", "logs", debug_enclave["EnclaveName"], timeout=20)
    assert "Hello from the enclave side!" in done.stdout
    assert cli("alcove", "logs", "nobody").returncode == 58
