"""The flags of ``alcove ca`` that are about the root's key, and the passphrase that no flag ever holds."""

from __future__ import annotations

import argparse
import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING

from alcove.errors import UsageError

if TYPE_CHECKING:
    from alcove.attestation.authority import Authority
    from alcove.attestation.names import Organization
    from alcove.attestation.root_key import KeyPlace, NewKey
    from alcove.attestation.store import Store

_PASSPHRASES = """\
A passphrase is typed, or comes from --passphrase-file, ALCOVE_CA_PASSPHRASE_FILE or ALCOVE_CA_PASSPHRASE.
A token's PIN comes from pin-source= in the URI or ALCOVE_PKCS11_PIN, its module from module-path= or
ALCOVE_PKCS11_MODULE."""


def add_new_key_flags(parser: argparse.ArgumentParser) -> None:
    """Where a new root's key shall live, and whose root it is."""
    group = parser.add_argument_group("a new root's key", _PASSPHRASES)
    where = group.add_mutually_exclusive_group()
    where.add_argument("--key-file", type=Path, metavar="FILE", help="write it here, protected by a passphrase")
    where.add_argument("--pkcs11", metavar="URI", help="a P-384 key that is on a token already (RFC 7512)")
    where.add_argument("--protect", action="store_true", help="keep it in the state directory, protected likewise")
    add_passphrase_flag(group)
    group = parser.add_argument_group(
        "a new root's name", "AWS's own unless said otherwise; every name below repeats it"
    )
    group.add_argument("--country", metavar="CC", help="two letters")
    group.add_argument("--organization", metavar="NAME", help="whose root it is")
    group.add_argument("--unit", metavar="NAME", help="the part of it")
    group.add_argument("--years", type=int, metavar="N", help="how long it lives; default: 30")


def add_passphrase_flag(parser: argparse._ActionsContainer) -> None:
    """The file that holds the passphrase."""
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="its first line opens the root's key")


def guard() -> None:
    """Keep the keys that this process is about to hold out of core dumps."""
    from alcove.attestation.private_memory import forbid_core_dumps  # noqa: PLC0415 - Linux alone

    forbid_core_dumps()


def new_key(arguments: argparse.Namespace, *, instead_of: KeyPlace | None = None) -> NewKey:
    """What the flags say about a new root's key; asks for a passphrase twice where one is needed."""
    from alcove.attestation.root_key import Kind, NewKey, check_passphrase  # noqa: PLC0415 - only some commands need it

    said = arguments.key_file or arguments.pkcs11 or arguments.protect
    if instead_of is not None and instead_of.kind is not Kind.PLAIN and not said:
        raise UsageError(
            f"the root's key is in: {instead_of.kind}; say where the new one shall be",
            hint="--key-file FILE, --pkcs11 URI or --protect",
        )
    if arguments.key_file and arguments.key_file.exists():
        raise UsageError(f"`{arguments.key_file}` exists already", hint="a key is never overwritten")
    if not (arguments.key_file or arguments.protect):
        if arguments.passphrase_file:
            raise UsageError("--passphrase-file goes with --key-file or --protect")
        return NewKey(uri=arguments.pkcs11)
    given = _given(arguments)
    if given is None:
        given = check_passphrase(_ask("passphrase for the root's key: "))
        if _ask("once more: ") != given:
            raise UsageError("the two passphrases differ")
    return NewKey(file=arguments.key_file, passphrase=check_passphrase(given))


def refuse_new_key(arguments: argparse.Namespace) -> None:
    """A flag about a new root, where none is made, is a mistake that must not pass unnoticed."""
    flags = ("key_file", "pkcs11", "protect", "country", "organization", "unit", "years")
    said = [name for name in flags if getattr(arguments, name) not in {None, False}]
    if said:
        raise UsageError(f"--{said[0].replace('_', '-')} is about a new root, and goes with --root")


def owner(arguments: argparse.Namespace) -> Organization | None:
    """Whose root it is, when a flag says so."""
    from alcove.attestation.names import Organization  # noqa: PLC0415 - only some commands need it

    names = {"country": arguments.country, "organization": arguments.organization, "unit": arguments.unit}
    said = {name: value for name, value in names.items() if value is not None}
    return Organization(**said) if said else None


def years(arguments: argparse.Namespace) -> int:
    """How long a new root lives."""
    from alcove.attestation.pki import ROOT_YEARS  # noqa: PLC0415 - only some commands need it

    if arguments.years is None:
        return ROOT_YEARS
    if not 1 <= arguments.years <= ROOT_YEARS:
        raise UsageError(f"--years is from 1 to {ROOT_YEARS}")
    return int(arguments.years)


def load(directory: Path) -> Authority:
    """The authority, for what needs no root key."""
    from alcove.attestation.authority import Authority  # noqa: PLC0415 - only some commands need it

    return Authority.load(directory)


def unlocked(directory: Path, arguments: argparse.Namespace, *, optional: bool = False) -> Authority:
    """The authority with what opens its root's key, asked for before anything is locked.

    Args:
        directory: The authority's.
        arguments: With `passphrase_file`.
        optional: Whether it is fine to go on without, where nobody can be asked.
    """
    from alcove.attestation.authority import Authority  # noqa: PLC0415 - only some commands need it

    store = Authority.load(directory).store
    return Authority.load(directory, passphrase(store, arguments, optional=optional))


def passphrase(store: Store, arguments: argparse.Namespace, *, optional: bool = False) -> bytes | None:
    """What opens the root's key in `store`; None where it needs nothing, or nobody can be asked and it is optional."""
    from alcove.attestation.root_key import Kind  # noqa: PLC0415 - only some commands need it

    place = store.key_place()
    if place.kind is not Kind.PROTECTED or not Path(place.where).exists():
        return None
    given = _given(arguments)
    if given is not None or (optional and not _has_terminal()):
        return given
    return _ask(f"passphrase for {place.where}: ")


def _given(arguments: argparse.Namespace) -> bytes | None:
    from alcove.attestation.root_key import environment_passphrase, read_passphrase  # noqa: PLC0415

    return read_passphrase(arguments.passphrase_file) if arguments.passphrase_file else environment_passphrase()


def _ask(prompt: str) -> bytes:
    if not _has_terminal():
        raise UsageError("there is no terminal to ask for the passphrase", hint="use --passphrase-file FILE")
    try:
        return getpass.getpass(prompt).encode()
    except EOFError:  # Ctrl-D
        raise UsageError("no passphrase was typed") from None


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
