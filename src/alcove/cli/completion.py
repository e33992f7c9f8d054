"""``alcove completion``: what a shell needs to complete our commands, made from the parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import shtab

from alcove.cli import output
from alcove.cli.parsers import Commands, command

_FILES: Final = {"FILE", "PEM", "JSON", "EIF", "KEY", "A", "B", "ROOT"}  # metavars of arguments that name files
_DIRECTORIES: Final = {"DIR"}
_EXAMPLE: Final = "alcove completion bash > /etc/bash_completion.d/alcove"


def add_commands(commands: Commands, programs: Mapping[str, Callable[[], argparse.ArgumentParser]]) -> None:
    """Add ``completion`` for programs, given by how their parsers are made."""

    def completion(arguments: argparse.Namespace) -> None:
        parser = programs[arguments.program]()
        _mark_paths(parser)
        output.text(shtab.complete(parser, shell=arguments.shell).rstrip("\n"))

    parser = command(commands, "completion", completion, "print what a shell needs to complete commands", _EXAMPLE)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the one that completes")
    parser.add_argument("--program", choices=tuple(programs), default="alcove", help="alcove when not given")


def _mark_paths(parser: argparse.ArgumentParser) -> None:
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's way to be told
        elif action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in action.choices.values():
                yield from _actions(below)
