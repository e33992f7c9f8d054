"""Names that several rooms share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NewType

Cid = NewType("Cid", int)
Port = NewType("Port", int)
Digest384 = NewType("Digest384", bytes)

HOST_CID: Final = Cid(2)  # devices.md §5.5: the host in Linux's terms
PARENT_CID: Final = Cid(3)  # devices.md §5.5: the parent in Nitro's terms
FIRST_ENCLAVE_CID: Final = Cid(16)  # cli.md §3.2
HEARTBEAT_PORT: Final = Port(9000)  # eif.md §10
ZERO_PCR: Final = Digest384(bytes(48))


@dataclass(frozen=True, slots=True)
class Measurements:
    """PCR0, PCR1 and PCR2 of an image, and PCR8 when it is signed (eif.md §2), 48 bytes each."""

    pcr0: Digest384
    pcr1: Digest384
    pcr2: Digest384
    pcr8: Digest384 | None = None

    def to_json(self) -> dict[str, str]:
        """The JSON object that every command prints (cli.md §2)."""
        pcrs = {"PCR0": self.pcr0, "PCR1": self.pcr1, "PCR2": self.pcr2, "PCR8": self.pcr8}
        return {"HashAlgorithm": "Sha384 { ... }"} | {name: value.hex() for name, value in pcrs.items() if value}
