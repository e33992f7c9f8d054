"""When keys were last used: kept in memory first, so that using a key costs no write (kms.md §21, §27).

Core: records in; records out. What is not saved yet when a process is killed is forgotten, a minute's worth at most.
"""

from __future__ import annotations

from typing import Final

from alcove.kms.store import KeyStore, Usage

MAX_WAITING: Final = 10_000  # keys; more are saved at once, after which the store is read anew
TRACKED: Final = frozenset({
    "Decapsulate", "Decrypt", "DeriveSharedSecret", "Encapsulate", "Encrypt", "GenerateDataKey", "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext", "GenerateDataKeyWithoutPlaintext", "GenerateMac", "ReEncrypt", "Sign",
    "Verify", "VerifyMac",
})  # fmt: skip


class Usages:
    """The last uses that the store does not know yet."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], Usage] = {}

    def note(self, usage: Usage, store: KeyStore) -> None:
        """Remembers a use."""
        self._waiting[usage.region, usage.key_id] = usage
        if len(self._waiting) > MAX_WAITING:
            self.save(store)

    def last(self, region: str, key_id: str, store: KeyStore) -> Usage | None:
        """The last use of a key."""
        return self._waiting.get((region, key_id)) or store.usage(region, key_id)

    def save(self, store: KeyStore) -> None:
        """Hands everything to the store."""
        if self._waiting:
            store.save_usages(list(self._waiting.values()))
            self._waiting.clear()
