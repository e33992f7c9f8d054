"""The store and its root key, as every ``alcove kms`` command finds them."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alcove.cli.attest_inputs import read_bytes
from alcove.enclave.paths import Paths
from alcove.errors import UsageError

if TYPE_CHECKING:
    from alcove.kms.rootplace import RootPlace
    from alcove.kms.stores import Store

_OTHERS: Final = "it is another user's: run this as the user who serves it, or name another one with --store"
PASSPHRASE: Final = "ALCOVE_KMS_PASSPHRASE"  # noqa: S105 - a variable's name
PASSPHRASE_FILE: Final = "ALCOVE_KMS_PASSPHRASE_FILE"  # noqa: S105 - a variable's name
_ROOT_KEY: Final = """\
The root key is in the file kms.root-key beside the store, or in ALCOVE_KMS_ROOT_KEY (64 hexadecimal digits).
Its passphrase, if it has one, is typed, or comes from --passphrase-file, ALCOVE_KMS_PASSPHRASE_FILE or
ALCOVE_KMS_PASSPHRASE. A token's PIN comes from pin-source= in its URI or ALCOVE_PKCS11_PIN, its module from
module-path= or ALCOVE_PKCS11_MODULE."""


def add_store_flags(parser: argparse.ArgumentParser) -> None:
    """Add --store and --passphrase-file."""
    group = parser.add_argument_group("the store", _ROOT_KEY)
    group.add_argument(
        "--store", metavar="URL", help="sqlite:///PATH or postgresql://…; default: in the state directory"
    )
    group.add_argument("--passphrase-file", type=Path, metavar="FILE", help="its first line opens the root key")


def guard() -> None:
    """Keep the secrets that this process is about to hold out of core dumps."""
    from alcove.attestation.private_memory import forbid_core_dumps  # noqa: PLC0415 - Linux alone

    forbid_core_dumps()


def store_url(text: str | None) -> str:
    """The URL of a store."""
    return text if text is not None and is_postgres(text) else f"sqlite:///{store_path(text)}"


def store_path(text: str | None) -> Path:
    """The file of a store, beside which its others are; that of a PostgreSQL store is in the database instead."""
    folder = Paths.from_environment().state / "kms"
    if text is None:
        return folder / "kms.sqlite"
    if is_postgres(text):
        return folder / "postgresql.store"
    if text.startswith("sqlite:///") and len(text) > len("sqlite:///"):
        return Path(text.removeprefix("sqlite:///")).absolute()
    raise UsageError(
        f"`{text}` is no store", hint="use sqlite:///PATH, an absolute path has four slashes; or postgresql://HOST/NAME"
    )


def is_postgres(text: str) -> bool:
    """Whether a store is in a PostgreSQL database."""
    return text.startswith(("postgresql://", "postgres://"))


def store_file(text: str | None) -> Path:
    """The file of a SQLite store; UsageError for another one."""
    if text is not None and is_postgres(text):
        hint = "use pg_dump and pg_restore, and keep the root key"
        raise UsageError("a PostgreSQL store is backed up with PostgreSQL's own tools", hint=hint)
    return store_path(text)


def root_file(store: Path) -> Path:
    """The file of its root key."""
    return store.with_suffix(".root-key")


def root_place(arguments: argparse.Namespace) -> RootPlace:
    """Where the root key of the store is that the arguments name."""
    from alcove.kms.rootplace import RootPlace  # noqa: PLC0415 - other commands do not need the KMS

    path = root_file(store_path(arguments.store))
    return RootPlace.of(path, once(lambda: passphrase(arguments.passphrase_file, f"passphrase for {path}: ")))


@contextlib.contextmanager
def opened(
    arguments: argparse.Namespace, *, create: bool = False, exclusive: bool = False, place: RootPlace | None = None
) -> Iterator[Store]:
    """The store that the arguments name, open until the block ends.

    Args:
        arguments: With `store` and `passphrase_file`.
        create: Whether it is made when there is none.
        exclusive: Whether nobody else may have it open.
        place: Where its root key is, when that is known already.
    """
    from alcove.kms.stores import one_line, open_store  # noqa: PLC0415 - other commands do not need the KMS

    guard()
    place, url = place or root_place(arguments), store_url(arguments.store)
    if not create and is_postgres(url) and not place.exists:
        raise UsageError(f"there is no root key {place.name}", hint="bring it from the server that made the store")
    if not create and not is_postgres(url):
        existing(store_path(arguments.store))
    with one_line(), contextlib.closing(open_store(url, place, exclusive=exclusive)) as store:
        yield store


def existing(path: Path) -> Path:
    """The path; UsageError when no store is there, or only others may use it."""
    if not there(path):
        raise UsageError(f"there is no store {path}", hint="`alcove kms serve` or `alcove kms user add` makes one")
    return path


def there(path: Path) -> bool:
    """Whether there is a store; UsageError when there may be, and only others may use it."""
    try:
        found = path.is_file()
    except PermissionError:
        found = True
    if found and not os.access(path, os.R_OK):
        raise UsageError(f"cannot open the store {path}: permission denied", hint=_OTHERS)
    return found


def passphrase(file: Path | None, prompt: str, *, twice: bool = False) -> bytes:
    """A passphrase, from a file, the environment or whoever sits at the terminal.

    Raises:
        UsageError: There is none, nobody to ask, or two that differ.
    """
    named = file or (Path(os.environ[PASSPHRASE_FILE]) if os.environ.get(PASSPHRASE_FILE) else None)
    if named:
        return read_bytes(named).split(b"\n", 1)[0].rstrip(b"\r")
    if os.environ.get(PASSPHRASE):
        return os.environ[PASSPHRASE].encode()
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise UsageError("there is no terminal to ask for the passphrase", hint="use --passphrase-file FILE") from None
    given = getpass.getpass(prompt).encode()
    if twice and getpass.getpass("once more: ").encode() != given:
        raise UsageError("the two passphrases differ")
    return given


def once(ask: Callable[[], bytes]) -> Callable[[], bytes]:
    """`ask`, with its answer remembered: nobody types a passphrase twice."""
    answers: list[bytes] = []

    def answer() -> bytes:
        if not answers:
            answers.append(ask())
        return answers[0]

    return answer
