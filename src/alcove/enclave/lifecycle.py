"""Start, list, watch and end enclaves: what the command line calls."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from alcove.enclave import control, registry
from alcove.enclave.config import RunRequest, encode_request
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.errors import AlcoveError, MachineError, UsageError

_CONSOLE_READ: Final = 1024  # cli.md §2, as upstream
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
        process.wait(_END_SECONDS)
        raise
    finally:
        process.stdout.close()
        if not process.stdin.closed:
            process.stdin.close()
    if not line:
        raise MachineError(
            "could not start the enclave process", code="E05", hint=f"it ended with status {process.wait(_END_SECONDS)}"
        )
    result: dict[str, Any] = json.loads(line)
    if "error" in result:
        process.wait(_END_SECONDS)
        raise _revive(result["error"])
    return result


def _revive(error: dict[str, Any]) -> AlcoveError:
    kind = MachineError if error["code"] in (None, "E27", "E29", "E36") else UsageError
    return kind(error["message"], hint=error["hint"], code=error["code"])


def describe_enclaves(paths: Paths, *, metadata: bool) -> tuple[list[dict[str, Any]], int]:
    """The running enclaves, and the number of supervisors that did not answer.

    An enclave that ends meanwhile is waited for: it is neither running nor a failure.
    """
    entries, failures = [], 0
    for record in registry.live(paths):
        try:
            entry = control.ask(paths.enclave(record.enclave_id).control, "describe")
        except control.NobodyListensError:
            failures += not (_is_starting(paths, record) or _ends(paths, record))
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
    try:
        control.ask(paths.enclave(record.enclave_id).control, "terminate")
    except control.NobodyListensError:
        if _is_starting(paths, record):
            raise
    if not _ends(paths, record):
        raise MachineError("the enclave process did not end", code="E39", hint=f"kill {record.process_id}")
    return {"EnclaveName": record.name, "EnclaveID": record.enclave_id, "Terminated": True}


def _is_starting(paths: Paths, record: Record) -> bool:
    """Whether a supervisor cannot be asked yet: its control socket comes with the heartbeat, its record goes first."""
    files = paths.enclave(record.enclave_id)
    return registry.holds(paths, record) and files.record.exists() and not files.control.exists()


def _ends(paths: Paths, record: Record) -> bool:
    """Wait until nothing of an enclave is left; False when that takes too long."""
    with _watch(record.process_id) as ended:
        # the lock is looked at with the process in hand: while it is held, the number is the supervisor's
        return not registry.holds(paths, record) or ended(_END_SECONDS)


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
    """The console's bytes, from the boot on, until the enclave or the time ends.

    Raises:
        MachineError: E44 for an enclave that is not in debug mode.
    """
    hint = "start the enclave with `--debug-mode` to get a console"
    if not record.debug_mode:
        raise MachineError("this enclave has no console", code="E44", hint=hint)
    deadline = None if disconnect_timeout is None else time.monotonic() + disconnect_timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(os.fspath(paths.enclave(record.enclave_id).console))
        except OSError as error:
            raise MachineError(f"no console: {error.strerror}", code="E44", hint=hint) from None
        yield b""  # connected
        while True:
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                connection.settimeout(left)
            try:
                chunk = connection.recv(_CONSOLE_READ)
            except TimeoutError:
                return
            if not chunk:
                return
            yield chunk
