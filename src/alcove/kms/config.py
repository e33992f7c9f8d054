"""What a KMS process is told.

Core: values only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from alcove.attestation.verify import Root
from alcove.kms.log import Log, silent
from alcove.kms.rootplace import RootPlace

DEFAULT_REGION: Final = "us-east-1"
GRACE: Final = 5  # seconds that open requests get at the end


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
        workers: Processes, each with an audit log of its own.
        clock: Aware time; by it keys expire, rotate and vanish.
        log: Told what operators want to know.
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
    log: Log = silent
