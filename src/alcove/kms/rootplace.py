"""Where a store's root key is: a file of its own, mode 0600, or a variable of the environment (kms.md §25).

It is made once, when there is no data yet; a missing or wrong root key beside existing data is never replaced. A new
root key waits in a second file until the store is wrapped under it, and a former one stays for the backups that need
it.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from alcove.errors import MachineError, UsageError
from alcove.kms import rootfile
from alcove.kms.rootfile import Openers
from alcove.kms.rootkey import RootKey

VARIABLE: Final = "ALCOVE_KMS_ROOT_KEY"
T = TypeVar("T")


def no_passphrase() -> bytes:
    """For those who have none to give."""
    raise UsageError("the root key needs a passphrase", hint="use --passphrase-file FILE, or a terminal")


@dataclass(frozen=True, slots=True)
class RootPlace:
    """The place of one root key.

    Attributes:
        path: The file.
        openers: What opens it, when it is protected.
    """

    path: Path
    openers: Openers

    @classmethod
    def of(cls, path: Path, passphrase: Callable[[], bytes] = no_passphrase) -> RootPlace:
        """The place with this process's environment."""
        return cls(path, Openers(passphrase, os.environ))

    @property
    def staged(self) -> RootPlace:
        """Where a new root key waits."""
        others = {name: value for name, value in self.openers.environment.items() if name != VARIABLE}
        return RootPlace(self.path.with_name(self.path.name + ".next"), Openers(self.openers.passphrase, others))

    @property
    def name(self) -> str:
        """How messages call it."""
        return VARIABLE if self._variable else str(self.path)

    @property
    def kind(self) -> str:
        """``environment``, ``plain``, ``passphrase`` or ``pkcs11``."""
        return "environment" if self._variable else self._checked(rootfile.kind, self._read())

    @property
    def uri(self) -> str:
        """Which key on which token opens it; empty when none does."""
        return "" if self._variable else self._checked(rootfile.token, self._read())

    @property
    def exists(self) -> bool:
        """Whether there is a root key."""
        return bool(self._variable) or self.path.exists()

    def load(self) -> RootKey:
        """The root key.

        Raises:
            UsageError: Missing, readable by others, not a root key, or not to be opened.
            MachineError: Its token cannot be used.
        """
        if self._variable:
            if self.path.exists():
                raise UsageError(f"there are two root keys: {VARIABLE} and {self.path}", hint="take one of them away")
            return self._checked(lambda text: RootKey(bytes.fromhex(text)), self._variable.strip())
        return self._checked(lambda text: rootfile.open_root(text, self.openers), self._read())

    def create(self) -> RootKey:
        """A new, unprotected root key in a new file; MachineError when it cannot be made, or exists."""
        root = RootKey.generate()
        write_new(self.path, rootfile.plain(root))
        return root

    def replace(self, text: str) -> None:
        """Puts another file in the place of this one, whole or not at all."""
        waiting = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        write_new(waiting, text)
        _rename(waiting, self.path)

    def promote(self, former: str) -> Path:
        """The staged root key takes its place; the former one is kept under its fingerprint, and its path returned.

        There is a root key in this place at every moment.
        """
        kept = self.path.with_name(f"{self.path.name}.{former}")
        if not kept.exists():
            RootPlace(kept, self.openers).replace(self._read())
        _rename(self.staged.path, self.path)
        return kept

    @property
    def _variable(self) -> str:
        return self.openers.environment.get(VARIABLE, "")

    def _checked(self, use: Callable[[str], T], text: str) -> T:
        try:
            return use(text)
        except (ValueError, RecursionError) as error:
            why = "it must hold 64 hexadecimal digits" if not text.lstrip().startswith("{") else str(error)
            raise UsageError(f"{self.name} is not a root key", hint=why) from None

    def _read(self) -> str:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise UsageError(
                f"the root key {self.path} is missing",
                hint="restore it: without it, nothing in the store can be opened",
            ) from None
        except OSError as error:
            raise UsageError(f"cannot read the root key {self.path}: {error.strerror}") from error
        with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise UsageError(f"the root key {self.path} can be read by others", hint=f"chmod 600 {self.path}")
            return file.read(rootfile.MAX_FILE)


@dataclass(frozen=True, slots=True)
class KnownRoot(RootPlace):
    """A root key that this process, or its parent, has opened already."""

    root: RootKey

    @classmethod
    def of_key(cls, root: RootKey) -> KnownRoot:
        """The place of a root key that is in memory."""
        return cls(Path("a root key in memory"), Openers(no_passphrase, {}), root)

    @property
    def exists(self) -> bool:
        """It does."""
        return True

    def load(self) -> RootKey:
        """The root key."""
        return self.root


def write_new(path: Path, text: str, what: str = "the root key") -> None:
    """Writes a new file, mode 0600, that is complete on disk when this returns.

    Raises:
        MachineError: The file cannot be made, or exists.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _sync(path.parent)
    except OSError as error:
        raise MachineError(f"cannot write {what} {path}: {error.strerror}") from error


def _rename(old: Path, new: Path) -> None:
    try:
        old.rename(new)
        _sync(new.parent)
    except OSError as error:
        raise MachineError(f"cannot rename the root key {old}: {error.strerror}") from error


def _sync(directory: Path) -> None:
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
