"""How every command's parser is made."""

from __future__ import annotations

import argparse
from typing import Any

Commands = Any  # argparse's sub-parsers action is private


def command(commands: Commands, name: str, handler: Any, text: str, example: str = "") -> argparse.ArgumentParser:
    """Add a command with its one-line help, and an example where one helps."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser
