"""The enclaves of this machine: one directory each, alive while its supervisor holds the lock file.

A lock dies with its process, whatever killed it, so nothing has to be cleaned up for the list to be right:
a directory whose lock is free belongs to nobody and is removed by whoever meets it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from alcove.enclave import ended
from alcove.enclave.cgroup import Cgroups
from alcove.enclave.paths import EnclavePaths, Paths
from alcove.enclave.record import Record
from alcove.enclave.runtime import prepare
from alcove.errors import AlcoveError, MachineError, UsageError
from alcove.types import FIRST_ENCLAVE_CID, Cid


def live(paths: Paths) -> list[Record]:
    """The running (and starting) enclaves, oldest first; what dead supervisors left is removed."""
    try:
        directories = sorted(paths.enclaves.iterdir(), key=_age)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MachineError(f"cannot read the runtime directory `{paths.run}`: {error.strerror}", code="E07") from None
    found = []
    for directory in directories:
        files = EnclavePaths(directory)
        if directory.name.startswith("."):  # being reserved at this moment
            continue
        if not _is_locked(files.lock):
            _bury(paths, files)
        elif record := _read(files.record):
            found.append(record)
    return found


def _age(directory: Path) -> int:
    try:
        return directory.lstat().st_mtime_ns
    except FileNotFoundError:  # it has gone since; the others are still there
        return 0


def holds(paths: Paths, record: Record) -> bool:
    """Whether an enclave's supervisor still holds what it reserved."""
    return _is_locked(paths.enclave(record.enclave_id).lock)


def _bury(paths: Paths, files: EnclavePaths) -> None:
    """Remove what a dead supervisor left; who gets to rename the directory writes down how the enclave ended."""
    grave = files.directory.with_name(f".dead-{files.directory.name}-{os.getpid()}")
    try:
        files.directory.rename(grave)
    except OSError:  # somebody else was faster, or it is not ours
        return
    if record := _read(EnclavePaths(grave).record):
        end = ended.End(ended.Cause.SUPERVISOR_KILLED, "the enclave's supervisor was killed, and the machine with it")
        ended.save(paths, record, end, None, None)
        Cgroups.of_this_machine().remove(record.enclave_id)
    shutil.rmtree(grave, ignore_errors=True)


def stage(paths: Paths) -> tuple[Path, int]:
    """A directory for a start's own files; those of starts that were killed are removed.

    Returns:
        The directory, and the descriptor that holds it: who closes that gives the directory up.
    """
    prepare(paths)
    with _exclusive(paths.run / "registry.lock"):
        _sweep(paths)
        try:
            directory = Path(tempfile.mkdtemp(prefix="boot-", dir=paths.run))
        except OSError as error:
            raise MachineError(f"cannot write to `{paths.run}`: {error.strerror}", code="E19") from None
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)
    return directory, held


def _sweep(paths: Paths) -> None:
    """Remove what no living process holds; the registry is locked, so nobody is about to hold it."""
    for directory in paths.run.glob("boot-*"):
        if not _is_locked(directory):
            shutil.rmtree(directory, ignore_errors=True)
    for directory in paths.enclaves.glob(".i-*"):  # a reservation that was killed
        shutil.rmtree(directory, ignore_errors=True)
    for directory in paths.enclaves.glob(".dead-*"):  # a burial that may go on
        if not Path("/proc", directory.name.rpartition("-")[2]).exists():
            shutil.rmtree(directory, ignore_errors=True)
    for link in paths.cids.iterdir():
        if not link.exists():
            link.unlink(missing_ok=True)


def find(paths: Paths, *, enclave_id: str | None = None, name: str | None = None) -> Record:
    """The one enclave with this id or name.

    Raises:
        UsageError: E11 for an unknown id, E58 for a name that none or several have.
    """
    matches = [
        record for record in live(paths) if enclave_id in (None, record.enclave_id) and name in (None, record.name)
    ]
    if len(matches) == 1:
        return matches[0]
    hint = "`describe-enclaves` lists what is running"
    if enclave_id is not None:
        raise UsageError(f"no enclave has the id `{enclave_id}`", code="E11", hint=hint)
    if matches:
        raise UsageError(f"several enclaves are called `{name}`", code="E58", hint="use --enclave-id")
    raise UsageError(f"no enclave is called `{name}`", code="E58", hint=hint)


def reserve(
    paths: Paths,
    enclave_id: str,
    decide: Callable[[list[Record]], Record],
    furnish: Callable[[EnclavePaths], object] | None = None,
) -> tuple[Record, IO[bytes]]:
    """Reserve name, CID, CPUs and memory while nobody else can.

    Args:
        paths: Where the registry is.
        enclave_id: The new enclave's id.
        decide: Makes the record from those that exist; what it raises is passed on and nothing is kept.
        furnish: Adds to the directory what has to be there when the enclave is first seen; errors as with `decide`.

    Returns:
        The record and the open lock file: the reservation lasts until that file is closed.
    """
    prepare(paths)
    with _exclusive(paths.run / "registry.lock"):
        record = decide(live(paths))
        _sweep(paths)
        # made under a name that live() passes over, so that no directory is ever seen without its lock held
        new = EnclavePaths(paths.enclaves / f".{enclave_id}")
        try:
            new.directory.mkdir(mode=0o755)
            lock = _open_lock(new.lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.record.write_text(json.dumps(asdict(record)))
            if furnish is not None:
                furnish(new)
            _link_cid(paths, record)
            new.directory.rename(paths.enclave(enclave_id).directory)
        except OSError as error:
            shutil.rmtree(new.directory, ignore_errors=True)
            raise MachineError(f"cannot write to `{paths.enclaves}`: {error.strerror}", code="E19") from None
        except AlcoveError:
            shutil.rmtree(new.directory, ignore_errors=True)
            raise
    return record, lock


def release(paths: Paths, record: Record, lock: IO[bytes]) -> None:
    """Give back what :func:`reserve` gave: the record, the CID's link and the directory go, then the lock."""
    files = paths.enclave(record.enclave_id)
    with contextlib.suppress(OSError):
        files.record.unlink()  # first: from here on the enclave is not listed
    link = paths.cids / str(record.cid)
    with contextlib.suppress(OSError):
        if link.readlink().name == record.enclave_id:
            link.unlink()
    shutil.rmtree(files.directory, ignore_errors=True)
    lock.close()


def _link_cid(paths: Paths, record: Record) -> None:
    """Point the CID to the enclave's directory."""
    link = paths.cids / str(record.cid)
    link.unlink(missing_ok=True)
    link.symlink_to(f"../{paths.enclaves.name}/{record.enclave_id}")


def free_name(wanted: str, records: list[Record]) -> str:
    """The wanted name, or the first free of ``name_1``, ``name_2``, … (cli.md §3.2)."""
    taken = {record.name for record in records}
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def free_cid(wanted: Cid | None, records: list[Record]) -> Cid:
    """The wanted CID, or the lowest free one from 16.

    Raises:
        UsageError: E29 when the wanted CID is in use.
    """
    taken = {record.cid for record in records}
    if wanted is not None:
        if wanted in taken:
            raise UsageError(f"the hypervisor refused a request: CID {wanted} is in use", code="E29")
        return wanted
    cid = int(FIRST_ENCLAVE_CID)
    while cid in taken:
        cid += 1
    return Cid(cid)


def _open_lock(path: Path) -> IO[bytes]:
    """A lock file that only its owner can open: who can open it can also hold it for ever."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    try:
        file = _open_lock(path)
    except OSError as error:
        raise MachineError(f"cannot open `{path}`: {error.strerror}", code="E19") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:  # somebody else's enclave
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read(path: Path) -> Record | None:
    try:
        raw = json.loads(path.read_text())
        return Record(**(raw | {"cpu_ids": tuple(raw["cpu_ids"])}))
    except (OSError, ValueError, TypeError, KeyError):
        return None
