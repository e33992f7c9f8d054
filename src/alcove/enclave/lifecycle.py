"""Start, list, watch and end enclaves: what the command line calls."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from alcove.devices.unix_path import socket_address
from alcove.enclave import control, ended, registry
from alcove.enclave.config import RunRequest, encode_request
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.errors import AlcoveError, MachineError, UsageError

_CONSOLE_READ: Final = 1024  # cli.md §2, as upstream
_CONSOLE_SECONDS: Final = 20.0  # likewise: for the console to be there
_CONSOLE_LOOK_SECONDS: Final = 0.02
_END_SECONDS: Final = 10.0


def run_enclave(request: RunRequest) -> dict[str, Any]:
    """Start an enclave and wait for its heartbeat.

    Returns:
        AWS's JSON of run-enclave (cli.md §2), and a ``Note`` for people: which mode the resources are in, and why.

    Raises:
        AlcoveError: Whatever stopped the start, with its code; nothing is left behind.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "alcove.enclave.supervise"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101 - for the type checker: both are pipes
    assert process.stdout is not None  # noqa: S101
    try:
        process.stdin.write(encode_request(request))
        process.stdin.flush()
        line = process.stdout.readline()
    except BaseException:
        # closing standard input tells the supervisor to undo the start
        process.stdin.close()
        _status(process)
        raise
    finally:
        process.stdout.close()
        if not process.stdin.closed:
            process.stdin.close()
    if not line:
        raise MachineError(
            "could not start the enclave process", code="E05", hint=f"it ended with status {_status(process)}"
        )
    result: dict[str, Any] = json.loads(line)
    if "error" in result:
        _status(process)
        raise _revive(result["error"])
    return result


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """Of a supervisor that undoes its start; None when that takes long, as behind the measuring of a large image."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_END_SECONDS)
    return None


def record_of(started: dict[str, Any], *, debug_mode: bool) -> Record:
    """What an enclave has reserved, from the JSON of :func:`run_enclave`."""
    return Record(
        enclave_id=started["EnclaveID"],
        name=started["EnclaveName"],
        cid=started["EnclaveCID"],
        cpu_ids=tuple(started["CPUIDs"]),
        memory_mib=started["MemoryMiB"],
        process_id=started["ProcessID"],
        debug_mode=debug_mode,
    )


def _revive(error: dict[str, Any]) -> AlcoveError:
    kind = MachineError if error["code"] in (None, "E27", "E29", "E36") else UsageError
    return kind(error["message"], hint=error["hint"], code=error["code"])


def describe_enclaves(paths: Paths, *, metadata: bool) -> tuple[list[dict[str, Any]], int]:
    """The running enclaves, and the number of supervisors that did not answer.

    Each entry has a ``Note`` for people, as that of :func:`run_enclave`. An enclave that ends meanwhile is waited for,
    and is neither running nor a failure.
    """
    entries, failures = [], 0
    for record in registry.live(paths):
        try:
            entry = control.ask(paths.enclave(record.enclave_id).control, "describe")
        except control.NobodyListensError:
            failures += not ends(paths, record)
            continue
        except MachineError:
            failures += 1
            continue
        if not metadata:
            for key in ("ImageName", "ImageVersion", "Metadata"):
                entry.pop(key, None)
        entries.append(entry)
    return entries, failures


def terminate_enclave(paths: Paths, record: Record) -> dict[str, Any]:
    """End an enclave and wait until nothing of it is left; one that is ending by itself is only waited for.

    Raises:
        MachineError: E38 when the supervisor refuses, E39 when it does not answer or does not end.
    """
    with contextlib.suppress(control.NobodyListensError):
        control.ask(paths.enclave(record.enclave_id).control, "terminate")
    if not ends(paths, record):
        raise MachineError("the enclave process did not end", code="E39", hint=f"kill {record.process_id}")
    return {"EnclaveName": record.name, "EnclaveID": record.enclave_id, "Terminated": True}


def ends(paths: Paths, record: Record, seconds: float | None = None) -> bool:
    """Wait until nothing of an enclave is left; False when that takes too long: 10 s unless it is said."""
    with _watch(record.process_id) as gone:
        # the lock is looked at with the process in hand: while it is held, the number is the supervisor's
        return not registry.holds(paths, record) or gone(_END_SECONDS if seconds is None else seconds)


@contextmanager
def _watch(process_id: int) -> Iterator[Callable[[float], bool]]:
    """Hold on to a process, so that its number cannot become another's while it is waited for."""
    try:
        descriptor = os.pidfd_open(process_id)
    except ProcessLookupError:
        yield lambda _: True
        return
    try:
        yield lambda seconds: bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def console(paths: Paths, record: Record, disconnect_timeout: float | None = None) -> Iterator[bytes]:
    """The console's bytes, from the boot on, until the enclave or the time ends; first an empty chunk: connected.

    An enclave that ends before it is reached has a console too: what was kept of it.

    Raises:
        MachineError: E44 for an enclave that is not in debug mode, or somebody else's; E45 when its console breaks off.
    """
    if not record.debug_mode:
        hint = "start the enclave with `--debug-mode` to get a console"
        raise MachineError("this enclave has no console", code="E44", hint=hint)
    deadline = math.inf if disconnect_timeout is None else time.monotonic() + disconnect_timeout
    connection = _connect_console(paths, record)
    yield b""
    heard = False
    if connection is not None:
        with connection:
            for chunk in _received(connection, deadline):
                heard = True
                yield chunk
    if not heard and time.monotonic() < deadline and ends(paths, record):
        yield ended.console_of(paths, record.enclave_id) or b""


def _connect_console(paths: Paths, record: Record) -> socket.socket | None:
    """The console of an enclave, which may be about to have one; None when the enclave has ended."""
    patience = time.monotonic() + _CONSOLE_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with socket_address(paths.enclave(record.enclave_id).console) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            problem: OSError = error
        except OSError as error:
            connection.close()
            raise _no_console(error) from None
        else:
            return connection
        connection.close()
        if not registry.holds(paths, record):
            return None
        if time.monotonic() > patience:
            raise _no_console(problem)
        time.sleep(_CONSOLE_LOOK_SECONDS)


def _no_console(error: OSError) -> MachineError:
    return MachineError(
        f"no console: {error.strerror}", code="E44", hint="only the enclave's owner and root may see it"
    )


def _received(connection: socket.socket, deadline: float) -> Iterator[bytes]:
    """What comes until the end or the deadline. A connection that was never taken ends without a byte."""
    heard = False
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(None if left == math.inf else left)
        try:
            chunk = connection.recv(_CONSOLE_READ)
        except TimeoutError:
            return
        except ConnectionError:
            if heard:
                raise MachineError(
                    "the console broke off", code="E45", hint="`alcove logs` shows what was kept"
                ) from None
            return
        if not chunk:
            return
        heard = True
        yield chunk
