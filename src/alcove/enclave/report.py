r"""What the guest's init says before it ends the enclave, on a second connection to the heartbeat's port.

Core: bytes in, a report out.

    exit <status>\n      the application ended
    signal <number>\n    a signal ended it
    oom <number>\n       likewise, after the kernel had killed for want of memory
    init <text>\n        init could not start it

AWS's init reports nothing, and on AWS's hypervisor the connection is refused, which our init takes for an answer.
A guest can say here what it likes: the report is shown to people and decides nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from alcove.errors import ProtocolError

MAX_REPORT: Final = 256  # bytes, as init.c sends them
_NUMBERED: Final = re.compile(rb"(exit|signal|oom) ([0-9]{1,3})\n")
_INIT: Final = re.compile(rb"init ([\x20-\x7e]{1,250})\n")


class Kind(StrEnum):
    """How the application ended."""

    EXIT = "exit"
    SIGNAL = "signal"
    OOM = "oom"
    INIT = "init"


@dataclass(frozen=True, slots=True)
class Report:
    """`number` is the exit status or the signal; `text` what init says, of printable ASCII."""

    kind: Kind
    number: int = 0
    text: str = ""


def parse_report(line: bytes) -> Report:
    """The report in a line.

    Raises:
        ProtocolError: It is none.
    """
    if match := _NUMBERED.fullmatch(line):
        number = int(match[2])
        if number <= 255:
            return Report(Kind(match[1].decode()), number)
    elif match := _INIT.fullmatch(line):
        return Report(Kind.INIT, text=match[1].decode())
    raise ProtocolError("the guest's init sent something that is no report")
