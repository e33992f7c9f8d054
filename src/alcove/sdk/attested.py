"""The key that envelopes are made for, and the documents that speak for it (sdk.md §3).

The private key is made on the first call, in this process, and never leaves it. Each call gets a document of its own:
KMS refuses one that is older than five minutes.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric import rsa

from alcove.sdk import nsm
from alcove.sdk.cms import open_envelope, subject_public_key_info
from alcove.sdk.recipient import KEY_ENCRYPTION

RSA_BITS = 2048  # sdk.md §3


class Attester(Protocol):
    """What makes attestation documents; `Nsm` does."""

    def attestation(self, *, public_key: bytes | None = None) -> bytes:
        """A fresh document."""


class RecipientKey:
    """An RSA key of this process's; threads may share it.

    Args:
        attester: What makes the documents; the process's module when None.
    """

    def __init__(self, attester: Attester | None = None) -> None:
        self._attester = attester
        self._lock = threading.Lock()
        self._made: tuple[rsa.RSAPrivateKey, bytes] | None = None

    def document(self) -> bytes:
        """A fresh document over the public half; raises NsmError."""
        attester = nsm.default() if self._attester is None else self._attester
        return attester.attestation(public_key=self._key()[1])

    def parameter(self) -> dict[str, Any]:
        """The value of `Recipient`, with a fresh document as bytes; raises NsmError."""
        return {"AttestationDocument": self.document(), "KeyEncryptionAlgorithm": KEY_ENCRYPTION}

    def open(self, envelope: bytes) -> bytes:
        """What is in an envelope that was made for this key; raises EnvelopeError."""
        return open_envelope(envelope, self._key()[0])

    def _key(self) -> tuple[rsa.RSAPrivateKey, bytes]:
        with self._lock:
            if self._made is None:
                key = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
                self._made = key, subject_public_key_info(key.public_key())
            return self._made
