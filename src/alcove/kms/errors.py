"""The errors that a KMS client sees (kms.md §10).

Core: the one place where a refusal becomes a status and a JSON body.
"""

from __future__ import annotations

import json
from pathlib import PurePath
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


def internal(error: BaseException) -> KmsError:
    """What stands for a mistake of ours; the audit log says where it was made, and nothing of what was in it."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {PurePath(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
    why = f": {error.strerror}" if isinstance(error, OSError) else ""  # other texts could have a secret in them
    because = f"{type(error).__name__}{where}{why}"
    return KmsError("KMSInternalException", "The request could not be served.", because=because)


def validation(message: str, *, because: str = "") -> KmsError:
    """A ValidationException."""
    return KmsError("ValidationException", message, because=because)


def unsupported(message: str) -> KmsError:
    """An UnsupportedOperationException."""
    return KmsError("UnsupportedOperationException", message)
