"""``alcove kms root``, ``backup`` and ``restore``: the root key, and copies of what it protects."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alcove.cli import output
from alcove.cli.kms_store import (
    add_store_flags,
    existing,
    guard,
    opened,
    passphrase,
    root_place,
    store_file,
    store_path,
    there,
)
from alcove.cli.parsers import Commands, command, command_group
from alcove.errors import UsageError

if TYPE_CHECKING:
    from alcove.kms.backup import Manifest
    from alcove.kms.rootchange import Protection

_KINDS: Final = {
    "environment": "an environment variable",
    "plain": "a file",
    "passphrase": "a file, under a passphrase",
    "pkcs11": "a file, under a key on a token",
}


def add_commands(commands: Commands) -> None:
    """Add ``root``, ``backup`` and ``restore``."""
    inner = command_group(commands, "root", "the root key, under which the store is wrapped")
    parser = command(
        inner,
        "init",
        init,
        "make the root key before the first start, protected as you say",
        "alcove kms root init --pkcs11 'pkcs11:token=hsm;object=kms'",
    )
    _add_protection(parser)
    parser = command(inner, "show", show, "say where the root key is, and its fingerprint")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_store_flags(parser)
    parser = command(
        inner,
        "rewrap",
        rewrap,
        "keep the same root key otherwise; a server may be running",
        "alcove kms root rewrap --protect --new-passphrase-file /media/stick/passphrase",
    )
    _add_protection(parser)
    parser = command(
        inner,
        "rotate",
        rotate,
        "make another root key and wrap the whole store under it; no server may be running",
        "alcove kms root rotate",
    )
    _add_protection(parser)
    _add_copies(commands)


def _add_copies(commands: Commands) -> None:
    parser = command(
        commands,
        "backup",
        backup,
        "copy the store, which may be in use, into a new file; secrets stay wrapped under the root key",
        "alcove kms backup kms-$(date +%F).backup",
    )
    parser.add_argument("file", type=Path, help="the backup; nothing may be there yet")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--store", metavar="URL", help="sqlite:///PATH; default: in the state directory")
    parser = command(
        commands,
        "restore",
        restore,
        "make a store from a backup, where there is none",
        "alcove kms restore kms-2026-11-24.backup --store sqlite:////srv/kms/kms.sqlite",
    )
    parser.add_argument("file", type=Path, help="the backup")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_store_flags(parser)


def _add_protection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is kept").add_mutually_exclusive_group()
    group.add_argument("--plain", action="store_true", help="in a file of mode 0600")
    group.add_argument("--protect", action="store_true", help="in such a file, under a passphrase")
    group.add_argument("--pkcs11", metavar="URI", help="in such a file, under an AES key of a token (RFC 7512)")
    parser.add_argument(
        "--new-passphrase-file", type=Path, metavar="FILE", help="its first line is the passphrase of --protect"
    )
    add_store_flags(parser)


def init(arguments: argparse.Namespace) -> None:
    """Make the root key."""
    from alcove.kms import rootchange, rootfile  # noqa: PLC0415 - other commands do not need the KMS

    guard()
    path = store_path(arguments.store)
    if there(path):
        raise UsageError(f"there is a store {path} already", hint="`alcove kms root rotate` changes its root key")
    fingerprint = rootchange.make(root_place(arguments), _protection(arguments) or rootfile.plain)
    output.say(f"made the root key {fingerprint}; keep a copy of it: without it, nothing in the store can be opened")
    output.text(fingerprint)


def show(arguments: argparse.Namespace) -> None:
    """Say where the root key is."""
    guard()
    place = root_place(arguments)
    found = {"Kind": place.kind, "Where": place.name, "Fingerprint": place.load().fingerprint}
    found |= {"Token": place.uri} if place.uri else {}
    if arguments.json:
        output.result(found)
        return
    output.text(f"{found['Fingerprint']}  {_KINDS[found['Kind']]}  {found['Where']}")


def rewrap(arguments: argparse.Namespace) -> None:
    """Keep the root key otherwise."""
    from alcove.kms import rootchange  # noqa: PLC0415 - other commands do not need the KMS

    guard()
    protection = _protection(arguments)
    if protection is None:
        raise UsageError("say how the root key shall be kept", hint="--plain, --protect or --pkcs11 URI")
    output.text(rootchange.protect(root_place(arguments), protection))


def rotate(arguments: argparse.Namespace) -> None:
    """Make another root key."""
    from alcove.kms import rootchange  # noqa: PLC0415 - other commands do not need the KMS

    protection, place = _protection(arguments), root_place(arguments)
    with opened(arguments, exclusive=True, place=place) as store:
        fingerprint, former = rootchange.rotate(store, place, protection)
    output.say(f"the former root key is in {former}: backups need it that were made before now; erase it with them")
    output.text(fingerprint)


def backup(arguments: argparse.Namespace) -> None:
    """Copy the store."""
    from alcove.kms.backup import back_up  # noqa: PLC0415 - other commands do not need the KMS

    _show(arguments, back_up(existing(store_file(arguments.store)), arguments.file, datetime.now(UTC)))


def restore(arguments: argparse.Namespace) -> None:
    """Make a store from a backup."""
    from alcove.kms import backup as copies  # noqa: PLC0415 - other commands do not need the KMS

    guard()
    manifest = copies.inspect(arguments.file)
    place = root_place(arguments)
    if place.exists and place.load().fingerprint != manifest.fingerprint:
        raise UsageError(
            f"{place.name} is not the root key of this backup",
            hint=f"the backup needs the root key {manifest.fingerprint}",
        )
    manifest = copies.restore(arguments.file, store_file(arguments.store))
    if not place.exists:
        output.warn(f"the store needs the root key {manifest.fingerprint}, and {place.path} is not there")
    _show(arguments, manifest)


def _show(arguments: argparse.Namespace, manifest: Manifest) -> None:
    if arguments.json:
        output.result(manifest.to_json())
        return
    output.text(f"{manifest.keys} keys of {manifest.taken}; the root key is {manifest.fingerprint}")


def _protection(arguments: argparse.Namespace) -> Protection | None:
    from alcove.kms import rootfile  # noqa: PLC0415 - other commands do not need the KMS

    if arguments.new_passphrase_file and not arguments.protect:
        raise UsageError("--new-passphrase-file goes with --protect")
    if arguments.pkcs11:
        return lambda root: rootfile.under_token(root, arguments.pkcs11, os.environ)
    if arguments.protect:
        file = arguments.new_passphrase_file
        return lambda root: rootfile.under_passphrase(
            root, passphrase(file, "new passphrase for the root key: ", twice=True)
        )
    return rootfile.plain if arguments.plain else None
