"""Alcove's own commands that need Linux: setup, doctor and demo, and the groups acm, ca, eif and kms."""

from __future__ import annotations

import argparse
from pathlib import Path

from alcove.cli import acm, ca, eif, kms, output
from alcove.cli.parsers import Commands, command
from alcove.enclave.paths import Paths


def add_commands(commands: Commands) -> None:
    """Add Alcove's own commands to the program."""
    command(commands, "setup", setup, "make the tools tree: QEMU and the guest kernel from Debian's packages")
    parser = command(commands, "doctor", doctor, "say what is present, what is missing and how to get it")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser = command(commands, "demo", demo, "run the whole story, from a container image to a released secret")
    parser.add_argument("--report", metavar="FILE", type=Path, help="write results and timings as JSON")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="work in this directory and keep it")
    acm.add_commands(commands)
    ca.add_commands(commands)
    eif.add_commands(commands)
    kms.add_commands(commands)


def setup(_: argparse.Namespace) -> None:
    """Make the tools tree, unless it is there."""
    from alcove.image.sources.tools_tree import ensure_tools_tree  # noqa: PLC0415 - only this command needs it

    tools = ensure_tools_tree(Paths.from_environment().state, output.say)
    output.say(f"tools tree: {tools.root}")


def doctor(arguments: argparse.Namespace) -> int:
    """Check the machine; status 1 when something that is needed is missing."""
    from alcove.enclave import isolation  # noqa: PLC0415 - only this command needs it
    from alcove.enclave.identity import authority_check  # noqa: PLC0415
    from alcove.machine.doctor import examine  # noqa: PLC0415

    paths = Paths.from_environment()
    checks = [
        *examine(paths.tools, cache=paths.accelerator_proof),
        *isolation.checks(paths),
        authority_check(paths),
    ]
    if arguments.json:
        output.result([{"name": c.name, "ok": c.ok, "detail": c.detail, "hint": c.hint} for c in checks])
    else:
        for entry in checks:
            output.text(f"{'ok     ' if entry.ok else 'MISSING'}  {entry.name:<14} {entry.detail}")
            if not entry.ok and entry.hint:
                output.text(f"         hint: {entry.hint}")
    return 0 if all(entry.ok for entry in checks) else 1


def demo(arguments: argparse.Namespace) -> int:
    """Run the walk-through."""
    from alcove.cli.demo.story import tell  # noqa: PLC0415 - only this command needs it

    return tell(arguments.report, arguments.keep)
