"""The errors that a KMS client sees (kms.md §10).

Core: the one place where a refusal becomes a status and a JSON body.
"""

from __future__ import annotations

import json
from typing import Final

from alcove.errors import AlcoveError

FAULTS: Final = frozenset({"KMSInternalException", "KeyUnavailableException", "DependencyTimeoutException"})  # §10.1


class KmsError(AlcoveError):
    """An error answer.

    Args:
        kind: AWS's class name, such as ``DisabledException``.
        message: AWS's text, or None where AWS sends no message member at all (§10.3).
        because: What the audit log says beyond the message; never sent.
    """

    def __init__(self, kind: str, message: str | None = None, *, because: str = "") -> None:
        super().__init__(message or kind)
        self.kind = kind
        self.text = message
        self.because = because

    @property
    def status(self) -> int:
        """500 for faults, 413 for a body that is too large, 400 for everything else (§10.1)."""
        return {"RequestEntityTooLargeException": 413}.get(self.kind, 500 if self.kind in FAULTS else 400)

    def body(self) -> bytes:
        """The JSON body; AccessDeniedException spells its member ``Message`` (§1.3)."""
        answer = {"__type": self.kind}
        if self.text is not None:
            answer["Message" if self.kind == "AccessDeniedException" else "message"] = self.text
        return json.dumps(answer).encode()


def validation(message: str, *, because: str = "") -> KmsError:
    """A ValidationException."""
    return KmsError("ValidationException", message, because=because)


def unsupported(message: str) -> KmsError:
    """An UnsupportedOperationException."""
    return KmsError("UnsupportedOperationException", message)
