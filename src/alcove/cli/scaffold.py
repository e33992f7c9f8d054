"""Commands to start a project with: ``new``, ``dev`` and ``rootfs``."""

from __future__ import annotations

import argparse
from pathlib import Path

from alcove.cli import output
from alcove.cli.parsers import Commands, command
from alcove.scaffold import kits, project, rootfs


def add_commands(commands: Commands) -> None:
    """Add ``new``, ``dev`` and ``rootfs``."""
    parser = command(commands, "new", new, "start a project from a template", "alcove new my-app --template python")
    parser.add_argument("name", metavar="NAME", help="of the project, its image and its enclave")
    parser.add_argument("--template", choices=project.TEMPLATES, default="python", help="python by default")
    parser = command(commands, "dev", dev, "build a project, run it in debug mode, follow it; again at each change")
    parser.add_argument("directory", nargs="?", type=Path, default=Path(), help="the project's; this one by default")
    parser.add_argument("--once", action="store_true", help="build and run once, until the enclave has ended")
    example = "alcove rootfs rootfs.tar --with boto3"
    parser = command(commands, "rootfs", make_rootfs, "make a root file system of Debian's packages", example)
    parser.add_argument("target", type=Path, metavar="TAR", help="the file; replaced when it is there")
    parser.add_argument(
        "--with",
        dest="kits",
        action="append",
        default=[],
        choices=list(kits.KITS),
        help="python has Alcove's SDK and alcove-enclave, acm the ACM application's token server; again for more",
    )
    parser.add_argument(
        "--package", dest="packages", action="append", default=[], metavar="NAME", help="one more of Debian's packages"
    )
    parser.add_argument("--mirror", metavar="URL", help="default: Debian's own, with updates and security")


def new(arguments: argparse.Namespace) -> None:
    """``new``."""
    made = project.create(arguments.name, arguments.template, Path())
    output.say(f"made {made}/: `make test` and `alcove dev` work in it")


def dev(arguments: argparse.Namespace) -> None:
    """``dev``."""
    from alcove.scaffold.dev import Developer  # noqa: PLC0415 - only this command needs it

    Developer(project.load(arguments.directory.absolute()), output.say).run(once=arguments.once)


def make_rootfs(arguments: argparse.Namespace) -> None:
    """``rootfs``."""
    rootfs.make(arguments.target, arguments.kits, packages=arguments.packages, mirror=arguments.mirror)
    output.say(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.0f} MB")
