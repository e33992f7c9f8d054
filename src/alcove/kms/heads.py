"""What a store remembers of its audit logs, so that a log that was cut off or replaced as a whole shows (kms.md §24).

A chain proves every record by the one after it, and the last one by nothing. So the store keeps the number and hash of
a record that was the last one a minute ago at most, under a secret of its own: whoever can write both files still
cannot make one up. What is remembered is on disk before: the log of a server that is killed never has less than this.
"""

from __future__ import annotations

import hmac
import socket
from pathlib import Path
from typing import Final

from alcove.kms.store import KeyStore

LABEL: Final = "audit heads"


def log_name(path: Path) -> str:
    """What a log is called: servers on several machines may share a store."""
    return f"{socket.gethostname()}:{path.absolute()}"


def note_head(store: KeyStore, log: str, head: str) -> None:
    """Remembers ``NUMBER:HASH`` of the last record that is on disk."""
    log = _known_as(store, log)
    store.save_note(f"audit {log}", f"{head} {_mac(store, log, head)}")


def noted_head(store: KeyStore, log: str) -> tuple[int, str] | None:
    """Number and hash of the record that was remembered; None when nothing was.

    Raises:
        ValueError: What is there was not written by this service.
    """
    log = _known_as(store, log)
    text = store.note(f"audit {log}")
    if text is None:
        return None
    head, _, mac = text.partition(" ")
    if not hmac.compare_digest(mac, _mac(store, log, head)):
        raise ValueError("what the store has of the log was changed")
    number, _, digest = head.partition(":")
    return int(number), digest


def known_logs(store: KeyStore) -> list[Path]:
    """The logs of this machine of which the store remembers a record, whether they are still there or not."""
    prefix = f"audit {_known_as(store, log_name(Path('/')))}"
    return [Path("/", name.removeprefix(prefix)) for name in store.notes(prefix)]


def _known_as(store: KeyStore, log: str) -> str:
    """Without its machine where the store is on the same one: a container has another host name each time."""
    return log if store.shared else log.partition(":")[2]


def _mac(store: KeyStore, log: str, head: str) -> str:
    return hmac.digest(store.secret(LABEL), f"{log}\0{head}".encode(), "sha256").hex()
