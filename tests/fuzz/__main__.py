"""Fuzzes one target for as long as wished, with libFuzzer's own flags.

    python -m tests.fuzz eif -max_total_time=600

It ends at the first input that breaks a target, which is saved under the directory of -artifact_prefix (the current one
when there is none) and, run again as `python -m tests.fuzz eif FILE`, is the only one tried.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["alcove"]):
    from tests.fuzz.targets import TARGETS

MEMORY = "-rss_limit_mb=1024"  # a bomb that is not stopped is a failure
SLOW = "-timeout=20"  # seconds for one input


def main(arguments: list[str]) -> None:
    """Fuzz the target of that name; never returns."""
    if not arguments or arguments[0] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [libFuzzer's flags]")
    target, given = TARGETS[arguments[0]], arguments[1:]
    with tempfile.TemporaryDirectory(prefix="alcove-corpus-") as corpus:
        for index, seed in enumerate(target.seeds()):
            Path(corpus, str(index)).write_bytes(seed)
        files = [argument for argument in given if not argument.startswith("-")]
        flags = [MEMORY, SLOW, *given] if files else [MEMORY, SLOW, "-max_len=16384", *given, corpus]
        atheris.Setup([sys.argv[0], *flags], target.run)
        child = os.fork()  # libFuzzer ends the process, and the corpus is to be removed after it
        if child == 0:
            atheris.Fuzz()
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) and 1)


if __name__ == "__main__":
    main(sys.argv[1:])
