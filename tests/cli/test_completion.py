"""Completion scripts, tried in a real bash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def script(*arguments: str) -> str:
    done = subprocess.run([BIN / "alcove", "completion", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("program", "words", "offered"),
    [
        ("alcove", ["des"], {"describe-enclaves", "describe-eif"}),
        ("alcove", ["eif", "ex"], {"extract", "explain"}),
        ("nitro-cli", ["run-enclave", "--eif"], {"--eif-path"}),
        ("alcove-enclave", ["kms"], {"kms-proxy", "kmstool"}),
        ("alcove-enclave", ["run", "--health-"], {"--health-interval"}),
    ],
)
def test_bash_completes_commands_and_flags(program: str, words: list[str], offered: set[str]) -> None:
    """What bash's own completion machinery gets from the script."""
    line = " ".join([program, *words])
    ask = (
        f'COMP_WORDS=({line}); COMP_CWORD={len(words)}; COMP_LINE="{line}"; COMP_POINT={len(line)}; '
        f'_shtab_{program.replace("-", "_")} {program}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    source = script("bash", "--program", program) + "\n" + ask
    done = subprocess.run(["bash", "-c", source], capture_output=True, text=True, check=True)
    assert {word.strip() for word in done.stdout.splitlines()} == offered, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
@pytest.mark.parametrize("program", ["alcove", "nitro-cli", "vsock-proxy", "alcove-enclave"])
def test_there_is_a_script_for_every_shell_and_program(shell: str, program: str) -> None:
    """It names the program it is for."""
    assert program in script(shell, "--program", program)
