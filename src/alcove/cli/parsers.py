"""How every command's parser is made."""

from __future__ import annotations

import argparse
from typing import Any, Final

Commands = Any  # argparse's sub-parsers action is private
_SIGNING: Final = """\
A pkcs11: URI takes its module from module-path= or NITRO_CLI_PKCS11_MODULE (or ALCOVE_PKCS11_MODULE),
its PIN from pin-source= or NITRO_CLI_PKCS11_PIN (or ALCOVE_PKCS11_PIN). A KMS key is used with AWS's usual
credentials; AWS_ENDPOINT_URL_KMS names a KMS that is not AWS's."""


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
    # none of our values is negative: `--memory -10` is a flag where a value is missing, as it is to AWS's parser
    parser._has_negative_number_optionals.append(True)  # noqa: SLF001
    return parser


def command_group(commands: Commands, name: str, text: str) -> Commands:
    """Add a command that has commands of its own; return the place for them."""
    return commands.add_parser(name, help=text, description=text).add_subparsers(metavar="COMMAND", required=True)


def vsock_port(text: str) -> int:
    """The type of an argument that is a vsock port."""
    value = int(text) if text.isascii() and text.isdecimal() else 0
    if not 0 < value < 0xFFFFFFFF:
        raise argparse.ArgumentTypeError("a vsock port is from 1 to 4294967294")
    return value


def add_proxy_port(parser: argparse.ArgumentParser, default: int) -> None:
    """Add --proxy-port, for programs in enclaves."""
    text = f"vsock-proxy's port on the parent; {default}"
    parser.add_argument("--proxy-port", type=vsock_port, default=default, metavar="PORT", help=text)


def add_signing_flags(parser: argparse.ArgumentParser) -> None:
    """Add --signing-certificate and --private-key."""
    group = parser.add_argument_group("signing", _SIGNING)
    group.add_argument("--signing-certificate", metavar="PEM", help="its key is on P-256, P-384 or P-521")
    group.add_argument("--private-key", metavar="KEY", help="a PEM file, a pkcs11: URI, or the ARN of a KMS key")
