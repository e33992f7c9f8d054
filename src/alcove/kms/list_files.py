"""Revocation lists in files that somebody else replaces: read again when they have changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alcove.attestation.crl import RevocationLists
from alcove.attestation.files import read_file
from alcove.errors import InputError, MachineError


class ListFiles:
    """The lists that documents are held against.

    Args:
        paths: Files in DER or PEM, each with one list or more; none of them means that nothing is revoked.

    Raises:
        InputError: A file holds something else.
        MachineError: A file cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._seen: tuple[object, ...] = ()
        self._lists: RevocationLists | None = None
        self.current()

    def current(self) -> RevocationLists | None:
        """The lists as the files are now, or None without files; errors as above, for what was good may be revoked."""
        if not self._paths:
            return None
        seen = tuple(_stamp(path) for path in self._paths)  # before reading: what changes meanwhile is seen next time
        if self._lists is None or seen != self._seen:
            self._lists = None
            try:
                self._lists = RevocationLists.from_files(*map(read_file, self._paths))
            except InputError as error:
                names = ", ".join(f"`{path}`" for path in self._paths)
                raise InputError(f"{names}: {error.message}", hint=error.hint) from None
            self._seen = seen
        return self._lists


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise MachineError(f"cannot read `{path}`: {error.strerror}") from None
    return status.st_ino, status.st_size, status.st_mtime_ns
