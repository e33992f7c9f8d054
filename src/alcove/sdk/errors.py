"""What can go wrong inside the enclave.

AlcoveError
├── NsmError          the security module refused or could not be reached; carries the reason's name
│   └── NotInEnclaveError  there is no security module
├── KmsError          KMS answered with an error; carries its type, message and HTTP status
├── EnvelopeError     CiphertextForRecipient could not be opened: one error, whatever the cause
└── EntropyError      the kernel's random generator cannot be trusted yet
"""

from __future__ import annotations

from alcove.errors import AlcoveError, MachineError, ProtocolError


class NsmError(AlcoveError):
    """The NSM refused a request, or could not be reached.

    Args:
        reason: The name of nsm.md §5, such as "InvalidIndex" or "InternalError".
        message: What happened, when it is more than the name says.
    """

    def __init__(self, reason: str, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or f"the NSM answers {reason}", hint=hint)
        self.reason = reason


class NotInEnclaveError(NsmError):
    """There is no security module here.

    Args:
        path: The device that is missing.
    """

    def __init__(self, path: str) -> None:
        super().__init__(
            "InternalError",
            f"not in an enclave: there is no {path}",
            hint="run this in an enclave whose kernel has the nsm driver; a test uses alcove.testing.SimulatedNSM",
        )


class KmsError(AlcoveError):
    """KMS answered with an error.

    Args:
        kind: KMS's own name of it, such as "AccessDeniedException".
        message: KMS's own message; empty when it sent none (kms.md §10.3).
        status: The HTTP status.
    """

    def __init__(self, kind: str, message: str, *, status: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind


class EnvelopeError(ProtocolError):
    """CiphertextForRecipient could not be opened (sdk.md §4.4: one uniform error for every failure)."""

    def __init__(self) -> None:
        super().__init__("the answer's envelope cannot be opened")


class EntropyError(MachineError):
    """The kernel's random generator cannot be trusted yet."""
