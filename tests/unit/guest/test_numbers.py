"""Numbers that stand in two places, because one of them is C or must not be loaded for a number, are the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alcove.cli import lifeline as asking
from alcove.enclave.clock import TIME_PORT
from alcove.enclave.last_words import LAST_WORDS_PORT, MAX_WORDS
from alcove.enclave.report import MAX_REPORT
from alcove.hostvsock import MAX_RUN
from alcove.image.process import LOG_PORT
from alcove.proxy import lifeline
from alcove.types import HEARTBEAT_PORT, PARENT_CID

SOURCE = Path(__file__).parents[3] / "src" / "alcove"


def defined(name: str) -> set[int]:
    """The values that our C gives to a name."""
    found = set()
    for path in SOURCE.glob("*/*.[ch]"):
        for text in re.findall(rf"#define {name} \(?([0-9* ]+)\)?", path.read_text()):
            value = 1
            for factor in text.split("*"):
                value *= int(factor)
            found.add(value)
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEARTBEAT_PORT", HEARTBEAT_PORT), ("TIME_PORT", TIME_PORT), ("LAST_WORDS_PORT", LAST_WORDS_PORT),
        ("PARENT_CID", PARENT_CID), ("REPORT_SIZE", MAX_REPORT), ("KEPT", MAX_WORDS), ("MAX_RUN", MAX_RUN),
    ],
)  # fmt: skip
def test_c_and_python_agree(name: str, value: int) -> None:
    """What init and the preload library are compiled with is what their other end expects."""
    assert defined(name) == {value}


def test_the_commands_ask_where_the_programs_listen() -> None:
    """`alcove logs` and `alcove health` look at the ports that an enclave's programs have."""
    assert (asking.PORT, asking.INIT_PORT) == (lifeline.PORT, LOG_PORT)
