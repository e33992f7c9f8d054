from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.enclave.report import Kind, Report, parse_report
from alcove.errors import ProtocolError


@pytest.mark.parametrize(
    ("line", "report"),
    [
        (b"exit 0\n", Report(Kind.EXIT, 0)),
        (b"exit 255\n", Report(Kind.EXIT, 255)),
        (b"signal 9\n", Report(Kind.SIGNAL, 9)),
        (b"oom 9\n", Report(Kind.OOM, 9)),
        (b"init /rootfs: No such file or directory\n", Report(Kind.INIT, text="/rootfs: No such file or directory")),
    ],
)
def test_each_kind_of_report_is_understood(line: bytes, report: Report) -> None:
    """One line, one report."""
    assert parse_report(line) == report


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"exit 0",
        b"exit 256\n",
        b"exit -1\n",
        b"exit 0\nexit 1\n",
        b"init \x1b[2J\n",
        b"init " + b"a" * 251 + b"\n",
    ],
)
def test_what_is_no_report_is_refused(line: bytes) -> None:
    """Numbers out of range, control characters and lines that are too long are no reports."""
    with pytest.raises(ProtocolError):
        parse_report(line)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_report_or_refused(line: bytes) -> None:
    """Nothing else is ever raised, and a text is printable."""
    try:
        report = parse_report(line)
    except ProtocolError:
        return
    assert 0 <= report.number <= 255
    assert report.text.isprintable()
