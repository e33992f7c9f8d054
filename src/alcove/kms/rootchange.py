"""Making a root key, protecting it otherwise, and changing it (kms.md §25)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alcove.errors import UsageError
from alcove.kms import rootfile
from alcove.kms.rootkey import RootKey
from alcove.kms.rootplace import VARIABLE, RootPlace, write_new
from alcove.kms.stores import Store

Protection = Callable[[RootKey], str]
"""What makes the text of a root key's file."""


def make(place: RootPlace, protection: Protection) -> str:
    """A new root key, before there is a store; returns its fingerprint.

    Raises:
        UsageError: There is one already.
    """
    _in_file(place)
    if place.exists:
        raise UsageError(f"there is a root key {place.name} already", hint="`alcove kms root rotate` changes it")
    root = RootKey.generate()
    write_new(place.path, protection(root))
    return root.fingerprint


def protect(place: RootPlace, protection: Protection) -> str:
    """The same root key, kept otherwise; returns its fingerprint. A server may be running."""
    _in_file(place)
    root = place.load()
    place.replace(protection(root))
    return root.fingerprint


def rotate(store: Store, place: RootPlace, protection: Protection | None) -> tuple[str, Path]:
    """Another root key, under which the whole store is wrapped anew.

    Args:
        store: Open, and by nobody else.
        place: Where its root key is.
        protection: How the new one is kept; as the present one is when None.

    Returns:
        The new fingerprint, and the file that keeps the former root key.
    """
    _in_file(place)
    root = RootKey.generate()
    place.staged.replace((protection or _same(place))(root))
    return root.fingerprint, store.rotate(place, root)


def _same(place: RootPlace) -> Protection:
    kind = place.kind
    if kind == "passphrase":
        return lambda root: rootfile.under_passphrase(root, place.openers.passphrase())
    if kind == "pkcs11":
        return lambda root: rootfile.under_token(root, place.uri, place.openers.environment)
    return rootfile.plain


def _in_file(place: RootPlace) -> None:
    if place.exists and not place.path.exists():
        raise UsageError(f"the root key is in {VARIABLE}, which this command cannot change", hint="keep it in a file")
