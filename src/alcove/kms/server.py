"""Runs the service: settings, TLS, listening sockets; one process, or several under a supervisor."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Final

from alcove.errors import MachineError, UsageError
from alcove.kms.audit import AuditLog
from alcove.kms.config import DEFAULT_REGION, GRACE, ServeConfig
from alcove.kms.stores import Store, open_store
from alcove.kms.supervisor import Supervisor
from alcove.kms.worker import Worker, new_metrics

__all__ = ["DEFAULT_REGION", "GRACE", "ServeConfig", "serve"]

BACKLOG: Final = 512
MAX_WORKERS: Final = 64


def serve(
    config: ServeConfig,
    *,
    ready: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT or `stop`; with several workers, SIGHUP starts them anew, one after another.

    Args:
        config: What to serve.
        ready: Called once with the endpoint URL, when requests are answered.
        stop: Ends the service from another thread, for one worker; signals are then left alone.

    Raises:
        UsageError: A setting cannot be, the root key is wrong, the address is taken.
        MachineError: A file cannot be used.
    """
    _check(config)
    context = _tls(config)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(contextlib.closing(_listen(config, config.port)))]
        port = listeners[0].getsockname()[1]
        listeners += [stack.enter_context(contextlib.closing(_listen(config, port))) for _ in range(config.workers - 1)]
        host = f"[{config.host}]" if ":" in config.host else listeners[0].getsockname()[0]
        url = f"{'https' if context else 'http'}://{host}:{port}"
        told = (lambda: ready(url)) if ready else (lambda: None)
        if config.workers == 1:
            store = stack.enter_context(contextlib.closing(_open(config)))
            audit = stack.enter_context(contextlib.closing(AuditLog(config.audit)))
            Worker(config, store, audit, new_metrics(1)).run(listeners[0], context, told, stop=stop)
        else:
            with contextlib.closing(_open(config)) as store:  # a connection to a database does not survive a fork
                root = store.root_key
            Supervisor(config, root, listeners, lambda: _tls(config)).run(told)


def _open(config: ServeConfig) -> Store:
    return open_store(config.store, config.root_key, account=config.account)


def _check(config: ServeConfig) -> None:
    if not 1 <= config.workers <= MAX_WORKERS:
        raise UsageError(f"there are 1 to {MAX_WORKERS} workers, not {config.workers}")
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


def _listen(config: ServeConfig, port: int) -> socket.socket:
    """One socket a worker: the kernel spreads connections, and they wait here while their worker starts anew."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only then; without it every answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if config.workers > 1:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((config.host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise MachineError(f"cannot listen on {config.host}:{port}: {reason.lower()}") from error
    return listener
