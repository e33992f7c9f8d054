"""Runs the service: store, audit log, listening socket; a clean end on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import uvloop

from alcove.attestation.verify import Root
from alcove.errors import MachineError, UsageError
from alcove.kms.audit import AuditLog
from alcove.kms.call import Tools
from alcove.kms.connection import Connection
from alcove.kms.http import KmsFace
from alcove.kms.keys import Realm
from alcove.kms.list_files import ListFiles
from alcove.kms.model import kms_model
from alcove.kms.rootplace import RootPlace
from alcove.kms.service import Service
from alcove.kms.stores import Store, open_store
from alcove.kms.sts import Sts
from alcove.kms.upkeep import housekeeping

DEFAULT_REGION: Final = "us-east-1"
GRACE: Final = 5  # seconds that open requests get at the end
PURGE_INTERVAL: Final = 3600.0
SWEEP_INTERVAL: Final = 1.0
USAGE_INTERVAL: Final = 60.0  # seconds for which last uses of keys are in memory alone
BACKLOG: Final = 512


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What a KMS process needs.

    Attributes:
        store: ``sqlite:///path`` or ``postgresql://…``.
        root_key: Where the root key is; it is made on the first start.
        audit: File of the audit log.
        roots: Attestation roots that are trusted.
        crls: Files of revocation lists, read again when they change.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        tls_cert: PEM chain, or None for plain HTTP.
        tls_key: PEM key.
        region: The first Region that is served.
        more_regions: Others; each has its own keys, and multi-Region keys can be in several.
        account: Account id of a new store; None takes the store's own.
        workers: Processes; 1 with SQLite.
        clock: Aware time; by it keys expire, rotate and vanish.
        grace: Seconds that open connections get at the end.
    """

    store: str
    root_key: Path | RootPlace
    audit: Path
    roots: Sequence[Root]
    crls: Sequence[Path] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: Path | None = None
    tls_key: Path | None = None
    region: str = DEFAULT_REGION
    account: str | None = None
    workers: int = 1
    more_regions: tuple[str, ...] = ()
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    grace: int = GRACE


def serve(
    config: ServeConfig,
    *,
    ready: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT or `stop`.

    Args:
        config: What to serve.
        ready: Called once with the endpoint URL, when requests are answered.
        stop: Ends the service from another thread; signals are then left alone.

    Raises:
        UsageError: A setting cannot be, the root key is wrong, the address is taken.
        MachineError: A file cannot be used.
    """
    _check(config)
    context = _tls(config)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(
            contextlib.closing(open_store(config.store, config.root_key, account=config.account))
        )
        audit = stack.enter_context(contextlib.closing(AuditLog(config.audit)))
        listener = stack.enter_context(contextlib.closing(_listen(config)))
        tools = _tools(config, store)
        host, port = listener.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        url = f"{'https' if context else 'http'}://{name}:{port}"
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            told = (lambda: ready(url)) if ready else (lambda: None)
            runner.run(_run(config, tools, audit, listener=listener, context=context, ready=told, stop=stop))
        tools.usages.save(tools.store)


def _tools(config: ServeConfig, store: Store) -> Tools:
    regions = tuple(dict.fromkeys((config.region, *config.more_regions)))
    return Tools(store, Realm(store.account, config.region), secrets.token_bytes, regions)


def _check(config: ServeConfig) -> None:
    if config.workers != 1:
        raise UsageError("a SQLite store is served by one worker", hint="leave --workers at 1")
    if (config.tls_cert is None) != (config.tls_key is None):
        raise UsageError("TLS needs a certificate and a key", hint="give both --tls-cert and --tls-key")


def _tls(config: ServeConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])  # kms.md §1.3: the C SDK would take h2
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot use {config.tls_cert} with {config.tls_key}: {reason}") from error
    return context


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only then; without it every answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise MachineError(f"cannot listen on {config.host}:{config.port}: {reason.lower()}") from error
    return listener


async def _run(
    config: ServeConfig,
    tools: Tools,
    audit: AuditLog,
    *,
    listener: socket.socket,
    context: ssl.SSLContext | None,
    ready: Callable[[], None],
    stop: threading.Event | None,
) -> None:
    """Answers until it is told to end; then what is being answered still is."""
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    if stop is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.set)
    tools = replace(tools, events=audit.append)
    revoked = ListFiles(config.crls)
    service = Service(tools, kms_model(), config.roots, audit.append, config.clock, crls=revoked.current)
    face = KmsFace(service, Sts(tools, audit.append, config.clock), audit.commit)
    connections: set[Connection] = set()
    server = await loop.create_server(
        lambda: Connection(face, connections, secure=context is not None), sock=listener, ssl=context, backlog=BACKLOG
    )
    chores = [
        _purge(lambda: _tidy(tools, audit, config.clock().timestamp())),
        _save(lambda: tools.usages.save(tools.store)),
        _sweep(connections),
        *([_watch(stop, ending)] if stop else []),
    ]
    working = [asyncio.create_task(chore) for chore in chores]
    ready()
    await ending.wait()
    server.close()
    for task in working:
        task.cancel()
    await _drain(connections, config.grace)


async def _drain(connections: set[Connection], grace: float) -> None:
    """Lets open requests have their answers, for a while."""
    for connection in list(connections):
        connection.end()
    until = time.monotonic() + grace
    while connections and time.monotonic() < until:  # noqa: ASYNC110 - they leave one by one, at the end alone
        await asyncio.sleep(0.01)
    for connection in list(connections):
        connection.abort()
    await asyncio.sleep(0)


async def _sweep(connections: set[Connection]) -> None:
    """Ends the connections whose time is over."""
    clock = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(SWEEP_INTERVAL)
        now = clock()
        for connection in [one for one in connections if one.deadline <= now]:
            connection.expire()


def _tidy(tools: Tools, audit: AuditLog, now: float) -> None:
    housekeeping(tools, now)
    audit.commit()


async def _purge(tidy: Callable[[], None]) -> None:
    while True:
        with contextlib.suppress(sqlite3.Error, OSError):  # a busy store or a full disk now is none later
            tidy()
        await asyncio.sleep(PURGE_INTERVAL)


async def _save(usages: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(USAGE_INTERVAL)
        with contextlib.suppress(sqlite3.Error):
            usages()


async def _watch(stop: threading.Event, ending: asyncio.Event) -> None:
    while not stop.is_set():  # noqa: ASYNC110 - the event belongs to another thread
        await asyncio.sleep(0.05)
    ending.set()
