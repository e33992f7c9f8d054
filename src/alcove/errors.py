"""Every error that Alcove raises on purpose.

AlcoveError                  message, hint and code; the one class that the command line catches
├── UsageError               the caller asked for something that cannot be
├── InputError               a file or document is not what it should be
│   ├── ImageFormatError     an EIF, cpio, tar or OCI structure; carries offset and field
│   └── AttestationError     an attestation document; carries the number of the failed step
│       └── PolicyError      the document is genuine and the policy does not accept it
├── ProtocolError            a peer (guest, QEMU, KMS, client) broke its protocol
└── MachineError             the environment: a missing tool, a failed program, no resources

Programmer mistakes stay RuntimeError, TypeError and ValueError.
"""

from __future__ import annotations


class AlcoveError(Exception):
    """An error with a sentence, a hint that helps, and AWS's code where there is one.

    Args:
        message: One lower-case sentence without a full stop: what is wrong.
        hint: What to do about it, or None.
        code: AWS's error code, such as "E26" (cli.md §5.2), or None.
    """

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    @property
    def exit_status(self) -> int:
        """The numeric part of the code; 1 without one and for E00 (cli.md §4)."""
        return (int(self.code[1:]) or 1) if self.code else 1


class UsageError(AlcoveError):
    """The caller asked for something that cannot be."""


class InputError(AlcoveError):
    """A file or document is not what it should be."""


class ImageFormatError(InputError):
    """An image structure is malformed.

    Args:
        message: What is wrong.
        field: The field that is wrong, in the format's own name.
        offset: Byte offset of the field in its file, when known.
    """

    def __init__(
        self, message: str, *, field: str = "", offset: int | None = None, hint: str | None = None, code: str = "E35"
    ) -> None:
        place = f"{field}: " if field else ""
        where = f" (at offset {offset})" if offset is not None else ""
        super().__init__(f"{place}{message}{where}", hint=hint, code=code)
        self.field = field
        self.offset = offset


class AttestationError(InputError):
    """An attestation document is not valid.

    Args:
        message: What is wrong.
        step: Number of the failed step of the verification recipe.
    """

    def __init__(self, message: str, *, step: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.step = step


class PolicyError(AttestationError):
    """The document is genuine, and the policy does not accept what it says."""


class ProtocolError(AlcoveError):
    """A peer broke its protocol."""


class MachineError(AlcoveError):
    """The environment failed: a missing tool, a failed program, no resources."""
