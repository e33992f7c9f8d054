from __future__ import annotations

import json
from typing import Any


def test_the_walk_through_comes_true(cli: Any) -> None:
    """The whole story: the right image gets the secret; a changed one, the parent and debug mode are refused."""
    report_file = cli.directory / "report.json"
    done = cli("alcove", "demo", "--report", report_file, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    report = json.loads(report_file.read_text())
    for promise in ("reproducible", "secret_released", "refused_tampered", "refused_parent", "refused_debug"):
        assert report[promise] is True, promise
    assert set(report["pcrs"]) >= {"PCR0", "PCR1", "PCR2"}
    assert 0 < report["boot_seconds"] < 180
    assert "Traceback" not in done.stdout + done.stderr
